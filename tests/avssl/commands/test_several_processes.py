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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import media_factory
import pytest
import torch
from forked_tools import ForkedTools

from avssl.loading import load
from avssl.tracking import read_rows

ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "pretrain.py"
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
    "--config demo --config retrieval --augment.crop_scale 1 --augment.flip 0 --augment.color 0 --augment.gain_db 0 "
    "--audio.options '{embed_dim: 16, depths: [1, 1, 1, 1], drop_path: 0}' --log.keep_every 4"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max-restarts", "1"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"AVSSL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def tried(environment: dict[str, str], forked_tools: ForkedTools) -> Callable[..., list[Done]]:
    """Runs the tool in ``world`` processes that are there already; what each of them ended with."""

    def run(world: int, *arguments: str) -> list[Done]:
        if world == 1:
            return [forked_tools.run(TOOL, [*arguments], environment=environment, cwd=ROOT)]
        return forked_tools.run_ranks(world, TOOL, [*arguments], environment=environment, cwd=ROOT)

    return run


@pytest.fixture(scope="module")
def run(tried: Callable[..., list[Done]]) -> Callable[..., None]:
    """The same, for what must end well."""

    def well(world: int, *arguments: str) -> None:
        for done in tried(world, *arguments):
            assert done.returncode == 0, done.stderr[-3000:]

    return well


def settings(output: Path, *more: str) -> list[str]:
    return [*shlex.split(SETTINGS), "--output", str(output), *more]


def struck(output: Path, *more: str) -> list[str]:
    """The command of a run of two processes that start by themselves, one of which is struck."""
    return [sys.executable, STRUCK, *settings(output, *TWO, *more)]


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


@pytest.fixture(scope="module")
def of_two(run: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole run of two processes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(2, *settings(folder, *TWO, *PLAIN))
    return folder


def test_a_killed_rank_ends_the_run_with_a_clear_message_and_it_resumes_exactly(
    run: Callable[..., None], environment: dict[str, str], tmp_path: Path
) -> None:
    run(2, *settings(tmp_path / "whole", *TWO))
    uninterrupted = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in uninterrupted] == list(range(1, 9))
    assert uninterrupted[0]["train/infonce/negatives"] == 7
    output = tmp_path / "run"
    returncode, told = struck_and_gone(struck(output), environment | strike(1), tmp_path)
    assert returncode != 0
    since = time.time() - (output / "checkpoints" / "last.ckpt").stat().st_mtime
    assert since < 240, f"the others ended {since:.0f} s after the strike"
    assert "lost another one at step" in told and f"continues from {output / 'checkpoints' / 'last.ckpt'}" in told
    assert len(read_rows(output / "metrics.jsonl")) < 8
    run(2, *settings(output, *TWO))
    assert read_rows(output / "metrics.jsonl") == uninterrupted


def test_the_first_killed_rank_takes_the_others_with_it(
    environment: dict[str, str], tmp_path: Path, long: bool
) -> None:
    """It started them, and holds the store by which they meet."""
    if not long:
        pytest.skip("takes a minute: set AVSSL_TEST_LONG=1")
    returncode, told = struck_and_gone(struck(tmp_path / "run"), environment | strike(0), tmp_path)
    assert returncode == -signal.SIGKILL and "process 1 of 2 lost another one at step" in told


def test_torchrun_restarts_a_run_that_lost_a_rank(of_two: Path, environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [*TORCHRUN, *struck(output, *PLAIN)[1:]]
    done = subprocess.run(arguments, env=environment | strike(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed at step" in done.stderr
    assert read_rows(output / "metrics.jsonl") == read_rows(of_two / "metrics.jsonl")


def test_processes_that_see_other_data_are_refused_before_anything_is_written(
    tried: Callable[..., list[Done]], tmp_path: Path
) -> None:
    """As of two machines, on one of which a file is another."""
    for rank in range(2):
        for k in range(8):
            seconds = 1.5 if (rank, k) == (1, 3) else 1.2
            media_factory.write_media(tmp_path / f"media-{rank}" / f"{k}.mp4", seconds=seconds, size=(64, 48))
    data = tmp_path / "data.yaml"
    data.write_text("dataset: folder\nroot: media-$LOCAL_RANK\nclip_seconds: 1.0\n")
    output = tmp_path / "run"
    told = r"process 1 of 2, on \S+, has (data|training clips|media files) of .+, not \S+ as process 0, on"
    for done in tried(2, *shlex.split(ANY_DATA), *TWO, "--data", str(data), "--output", str(output)):
        assert done.returncode == 1
        assert re.search(told, done.stderr), done.stderr[-3000:]
    assert not output.exists()


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_rows(folder / "metrics.jsonl") if "train/loss" in row]


def test_a_sharded_run_is_whole_and_is_not_resumed_as_another(
    run: Callable[..., None], tried: Callable[..., list[Done]], tmp_path: Path
) -> None:
    validated = ["--data.val_fraction", "0.25", "--log.validate_every", "1"]
    run(2, *settings(tmp_path / "fsdp", *TWO, *validated, "--runtime.strategy", "fsdp"))
    assert len(losses(tmp_path / "fsdp")) == 8
    exported = load(tmp_path / "fsdp" / "audio_encoder").model.state_dict()
    best = load(tmp_path / "fsdp" / "checkpoints" / "best.ckpt").audio_encoder.state_dict()
    assert all(torch.equal(value, best[name]) for name, value in exported.items()), "whole, and of the best step"
    (refused,) = tried(1, *settings(tmp_path / "fsdp", *ONE, *validated))
    assert refused.returncode == 1 and "was written with runtime.strategy fsdp" in refused.stderr


def test_a_run_goes_on_with_another_number_of_processes(
    of_two: Path, run: Callable[..., None], tried: Callable[..., list[Done]], tmp_path: Path
) -> None:
    shutil.copytree(of_two, tmp_path / "run")
    whole = losses(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / "checkpoints" / "step-4.ckpt").replace(last)
    (wrong,) = tried(1, *settings(tmp_path / "run", *PLAIN, "--optim.batch_size", "4"))
    assert wrong.returncode == 1 and "8 clips a batch, not 4 x 1 processes: give --optim.batch_size 8" in wrong.stderr
    run(1, *settings(tmp_path / "run", *ONE, *PLAIN))
    resumed = losses(tmp_path / "run")
    assert len(resumed) == 8 and resumed[:4] == whole[:4]
    # The same weights and clips. But batch norm of several CPU processes has each its own statistics: close, not equal,
    # and from then on the weights differ, too.
    assert resumed[4] == pytest.approx(whole[4], rel=0.2)
    assert resumed[-1] < resumed[4] < whole[0], "it goes on learning"
