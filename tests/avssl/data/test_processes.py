"""Processes of scans, loaders and the demo set do not run the user's script again, and end with their parent."""

import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from loading_samples import write_ramp_wav

from avssl.data import processes

# Without a guard `if __name__ == "__main__"`, as most scripts are written; it notes each time that it is run.
SCRIPT = """
from pathlib import Path

folder = Path(__file__).parent
with (folder / "runs.txt").open("a") as file:
    file.write("run, ")

from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.demo import build, build_demo
from avssl.data.loader import make_eval_loader
from avssl.data.media.pool import probe_all

files = [str(path) for path in sorted((folder / "media").glob("*.wav"))]
infos = list(probe_all(files, workers=1, timeout=120))
assert sorted(info.path for info in infos) == files and not any(info.error for info in infos), infos

manifest = open_data(str(folder / "media"))
dataset = ClipDataset(manifest, modalities=["audio"], clip_seconds=0.5, mode="center")
for epoch in range(2):
    batches = list(make_eval_loader(dataset, 2, num_workers=1, timeout=120))
    assert [len(batch) for batch in batches] == [2, 1], batches

build.IN_PROCESS = 0
build_demo(folder / "demo", pretrain=2, train_per_class=0, test_per_class=0, workers=2)
assert len(list((folder / "demo").rglob("*.mp4"))) == 2
print("done")
"""
OWN_FUNCTION = """
from avssl.data.media.pool import run_all

def mine(job):
    return job

list(run_all(mine, ["a"], lambda job, reason: reason, workers=1))
"""
OWN_DATASET = """
from avssl.data.clips import ClipDataset
from avssl.data.loader import make_eval_loader
from avssl.data.manifest import Manifest

class Mine(ClipDataset):
    pass

rows = Manifest.from_rows([{"clip_id": "a", "path": "a.wav"}], ".")
make_eval_loader(Mine(rows, clip_seconds=1.0, mode="center"), 1, num_workers=1)
"""


def run_script(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("AVSSL_CACHE", str(folder / "cache"))
    (folder / "script.py").write_text(text)
    return subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True, timeout=250)


def test_a_script_without_a_guard_is_run_once(tmp_path, monkeypatch) -> None:
    for name in "abc":
        write_ramp_wav(tmp_path / "media" / f"{name}.wav", 1.0)
    done = run_script(SCRIPT, tmp_path, monkeypatch)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert (tmp_path / "runs.txt").read_text() == "run, "


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (OWN_FUNCTION, "must be importable, not defined in the script"),
        (OWN_DATASET, "Mine is defined in the script that is run"),
    ],
)
def test_work_that_only_the_script_has_fails_at_once_and_says_why(
    script: str, told: str, tmp_path, monkeypatch
) -> None:
    done = run_script(script, tmp_path, monkeypatch)
    assert done.returncode == 1 and told in done.stderr


ORPHANS = """
import os, signal, sys, time
from multiprocessing import forkserver, resource_tracker
from avssl.data.media.pool import _Worker

worker = _Worker(time.sleep)  # is ready when this returns
worker.give([1000.0])
print(worker.process.pid, forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid, flush=True)
if sys.argv[1] == "stopped":
    os.kill(worker.process.pid, signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("worker", ["busy", "stopped"])
def test_a_killed_process_leaves_no_worker_server_or_tracker_behind(worker: str) -> None:
    killed = subprocess.run([sys.executable, "-c", ORPHANS, worker], stdout=subprocess.PIPE, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in killed.stdout.split()]
    assert len(pids) == 3
    until = time.monotonic() + 60
    while (left := [pid for pid in pids if is_there(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_where_the_system_does_not_kill_a_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(processes.sys, "platform", "elsewhere")
    monkeypatch.setattr(processes, "parent_process", lambda: SimpleNamespace(sentinel=reader))
    monkeypatch.setattr(processes.os, "_exit", ended.put)
    processes.end_with_parent()
    assert ended.empty()
    os.close(writer)
    assert ended.get(timeout=60) == 1
    os.close(reader)
