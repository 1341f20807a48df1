"""Runs of several gloo processes through the tool: killed and continued, restarted by torchrun, sharded, resized."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch

from avssl.loading import load
from avssl.tracking import read_rows

ROOT = Path(__file__).parents[3]
TOOL = str(ROOT / "tools" / "pretrain.py")
STRUCK = str(Path(__file__).with_name("struck_pretrain.py"))
ANY_DATA = (
    "--audio.options '{embed_dim: 16, depths: [1, 1, 1, 1]}' --data.num_workers 0 --data.clip_seconds 1.0 "
    "--data.val_fraction 0 --wandb.mode disabled --optim.max_steps 8 --log.every 1 --log.checkpoint_every 2 "
    "--runtime.accelerator cpu"
)
SETTINGS = f"{ANY_DATA} --data.options '{{pretrain: 16, train_per_class: 1, test_per_class: 1}}'"
TWO = ["--runtime.devices", "2", "--optim.batch_size", "4"]
ONE = ["--runtime.devices", "1", "--optim.batch_size", "8"]
# No random numbers that depend on which process draws them.
PLAIN = shlex.split(
    "--augment.crop_scale 1 --augment.flip 0 --augment.color 0 --augment.gain_db 0 "
    "--audio.options '{embed_dim: 16, depths: [1, 1, 1, 1], drop_path: 0}' --log.keep_every 4"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max-restarts", "1"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"AVSSL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def command(output: Path, *more: str, tool: str = TOOL) -> list[str]:
    return [sys.executable, tool, *shlex.split(SETTINGS), "--output", str(output), *more]


def strike(rank: int) -> dict[str, str]:
    """Kills a process of this rank as soon as there is something to continue from."""
    return {"STRIKE": f"{int(signal.SIGKILL)} {rank} 1"}


def struck_and_gone(arguments: list[str], environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """Status and words of a run with a decoding process for each rank, one of which is struck.

    Nothing of it may stay: no process, no semaphore, no shared memory.
    """
    mark, notes = f"AVSSL_TEST_MARK={uuid.uuid4().hex}", folder / "notes"
    notes.mkdir()
    environment = environment | dict([mark.split("=")]) | {"STRIKE_NOTES": str(notes)}
    with (folder / "told.txt").open("w+") as told:  # a pipe would end with the last process only
        command = [*arguments, "--data.num_workers", "1"]
        status = subprocess.run(command, env=environment, stdout=told, stderr=told).returncode
        until = time.monotonic() + 120  # ten seconds, on a quiet machine
        while (left := marked(mark)) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        told.seek(0)
        assert not left, f"{left} stayed: {told.read()[-3000:]}"
        semaphores = [name for note in notes.iterdir() for name in note.read_text().split()]
        assert semaphores and not [name for name in semaphores if Path("/dev/shm", name).exists()]
        told.seek(0)
        return status, told.read()


def marked(mark: str) -> list[int]:
    """Processes that have this variable in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def run(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def of_two(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole run of two processes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(command(folder, *TWO, *PLAIN), environment)
    return folder


def test_a_killed_rank_ends_the_run_with_a_clear_message_and_it_resumes_exactly(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run(command(tmp_path / "whole", *TWO), environment)
    uninterrupted = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in uninterrupted] == list(range(1, 9))
    assert uninterrupted[0]["train/infonce/negatives"] == 7
    output = tmp_path / "run"
    returncode, told = struck_and_gone(command(output, *TWO, tool=STRUCK), environment | strike(1), tmp_path)
    assert returncode != 0
    since = time.time() - (output / "checkpoints" / "last.ckpt").stat().st_mtime
    assert since < 240, f"the others ended {since:.0f} s after the strike"
    assert "lost another one at step" in told and f"continues from {output / 'checkpoints' / 'last.ckpt'}" in told
    assert len(read_rows(output / "metrics.jsonl")) < 8
    run(command(output, *TWO), environment)
    assert read_rows(output / "metrics.jsonl") == uninterrupted


def test_the_first_killed_rank_takes_the_others_with_it(
    environment: dict[str, str], tmp_path: Path, long: bool
) -> None:
    """It started them, and holds the store by which they meet."""
    if not long:
        pytest.skip("takes a minute: set AVSSL_TEST_LONG=1")
    arguments = command(tmp_path / "run", *TWO, tool=STRUCK)
    returncode, told = struck_and_gone(arguments, environment | strike(0), tmp_path)
    assert returncode == -signal.SIGKILL and "process 1 of 2 lost another one at step" in told


def test_torchrun_restarts_a_run_that_lost_a_rank(of_two: Path, environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [*TORCHRUN, *command(output, *TWO, *PLAIN, tool=STRUCK)[1:]]
    done = subprocess.run(arguments, env=environment | strike(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed at step" in done.stderr
    assert read_rows(output / "metrics.jsonl") == read_rows(of_two / "metrics.jsonl")


def test_processes_that_see_other_data_are_refused_before_anything_is_written(
    environment: dict[str, str], tmp_path: Path, media_factory: ModuleType
) -> None:
    """As of two machines, on one of which a file is another."""
    for rank in range(2):
        for k in range(8):
            seconds = 1.5 if (rank, k) == (1, 3) else 1.2
            media_factory.write_media(tmp_path / f"media-{rank}" / f"{k}.mp4", seconds=seconds, size=(64, 48))
    data = tmp_path / "data.yaml"
    data.write_text("dataset: folder\nroot: media-$LOCAL_RANK\nclip_seconds: 1.0\n")
    output = tmp_path / "run"
    arguments = [TOOL, *shlex.split(ANY_DATA), *TWO, "--data", str(data), "--output", str(output)]
    done = subprocess.run([*TORCHRUN[:-1], "0", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    told = r"process 1 of 2, on \S+, has (data|training clips) of the digest '\w+', not '\w+' as process 0, on"
    assert re.search(told, done.stderr), done.stderr[-3000:]
    assert not output.exists()


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_rows(folder / "metrics.jsonl") if "train/loss" in row]


def test_a_sharded_run_is_whole_and_is_not_resumed_as_another(environment: dict[str, str], tmp_path: Path) -> None:
    validated = ["--data.val_fraction", "0.25", "--log.validate_every", "1"]
    run(command(tmp_path / "fsdp", *TWO, *validated, "--runtime.strategy", "fsdp"), environment)
    assert len(losses(tmp_path / "fsdp")) == 8
    exported = load(tmp_path / "fsdp" / "audio_encoder").model.state_dict()
    best = load(tmp_path / "fsdp" / "checkpoints" / "best.ckpt").audio_encoder.state_dict()
    assert all(torch.equal(value, best[name]) for name, value in exported.items()), "whole, and of the best step"
    refused = subprocess.run(
        command(tmp_path / "fsdp", *ONE, *validated), env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 1 and "was written with runtime.strategy fsdp" in refused.stderr


def test_a_run_goes_on_with_another_number_of_processes(
    of_two: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(of_two, tmp_path / "run")
    whole = losses(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / "checkpoints" / "step-4.ckpt").replace(last)
    smaller = command(tmp_path / "run", *PLAIN, "--optim.batch_size", "4")
    wrong = subprocess.run(smaller, env=environment, capture_output=True)
    assert wrong.returncode == 1 and b"8 clips a batch, not 4 x 1 processes: give --optim.batch_size 8" in wrong.stderr
    run(command(tmp_path / "run", *ONE, *PLAIN), environment)
    resumed = losses(tmp_path / "run")
    assert len(resumed) == 8 and resumed[:4] == whole[:4]
    # The same weights and clips. But batch norm of several CPU processes has each its own statistics: close, not equal,
    # and from then on the weights differ, too.
    assert resumed[4] == pytest.approx(whole[4], rel=0.1)
    assert max(resumed[5:]) < resumed[4], "it goes on learning"
