"""One writer at a time, whatever became of the one before."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import SoftFileLease

from avssl import locks
from avssl.commands import main
from avssl.commands.extract_audio import SUMMARY, extract_all
from avssl.data.manifest import Manifest
from avssl.locks import HeldError, hold, refuse_held

KILLED = """
import os, sys
from avssl.locks import hold
with hold(sys.argv[1], "run"):
    os.kill(os.getpid(), 9)
"""


def test_the_second_is_told_who_writes_and_since_when(tmp_path: Path) -> None:
    with hold(tmp_path / "out", "run"):
        who = rf"run .*out is being written by {socket.gethostname()}, process {os.getpid()}, since 2\d\d\d-"
        with pytest.raises(HeldError, match=who), hold(tmp_path / "out", "run"):
            pass
        with pytest.raises(HeldError, match=who):
            refuse_held(tmp_path / "out", "run")
        with hold(tmp_path / "other", "run"):
            pass
    refuse_held(tmp_path / "out", "run")
    assert list(tmp_path.iterdir()) == [], "a lock that is released leaves nothing"


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert (tmp_path / ".out.lock").is_file()
    with hold(tmp_path / "out", "run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "export --checkpoint nowhere --output OUT.pt2",
        "average nowhere.ckpt --output OUT.pt2",
        "compare nowhere elsewhere --output OUT.pt2",
        "augment --data demo --output OUT.pt2",
        "demo --output OUT.pt2",
    ],
)
def test_every_command_that_writes_is_told_of_another_one(tmp_path: Path, capsys, command: str) -> None:
    out = tmp_path / "OUT.pt2"
    with hold(out, "other"):
        assert main(command.replace("OUT.pt2", str(out)).split()) == 1
    assert f"{out} is being written by {socket.gethostname()}, process {os.getpid()}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def of_another_host(folder: Path) -> Path:
    """The lock of a process elsewhere, whose life can only be seen by its heartbeat."""
    with hold(folder / "out", "run"):
        text = (folder / ".out.lock").read_text()
    file = folder / ".out.lock"
    file.write_text(text.replace(f"host={socket.gethostname()}", "host=elsewhere"))
    return file


def test_the_lock_of_another_host_is_taken_over_without_a_sign_of_life(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "LEASE", 1.0)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.2)
    monkeypatch.setattr(locks, "POLL", 0.1)
    of_another_host(tmp_path)
    with hold(tmp_path / "out", "run"):
        assert f"pid={os.getpid()}" in (tmp_path / ".out.lock").read_text()


def test_a_live_holder_on_another_host_keeps_its_lock(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "POLL", 0.1)
    file = of_another_host(tmp_path)
    acquire = SoftFileLease.acquire

    def beating(lease: SoftFileLease, *args: object, **options: object) -> object:
        os.utime(file)  # the other one's heartbeat
        return acquire(lease, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SoftFileLease, "acquire", beating)
    with pytest.raises(HeldError, match="elsewhere"), hold(tmp_path / "out", "run"):
        pass
    assert file.is_file()


@pytest.mark.parametrize("hours", [-5, 5])
def test_no_jump_of_the_clock_takes_a_lock(tmp_path: Path, monkeypatch, hours: int) -> None:
    """Neither of the holder's clock, by which the sign of life has its time, nor of one's own."""
    monkeypatch.setattr(locks, "POLL", 0.1)
    file = of_another_host(tmp_path)
    clock, acquire, polls = time.time, SoftFileLease.acquire, 0
    os.utime(file, (clock() - 3600 * hours,) * 2)
    monkeypatch.setattr(time, "time", lambda: clock() + 3600 * hours)

    def counted(lease: SoftFileLease, *args: object, **options: object) -> object:
        nonlocal polls
        polls += 1
        if polls == 5:
            raise InterruptedError
        return acquire(lease, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SoftFileLease, "acquire", counted)
    with pytest.raises(InterruptedError), hold(tmp_path / "out", "run"):
        pass
    assert "host=elsewhere" in file.read_text()


def test_who_waits_gets_it_after_the_other(tmp_path: Path, caplog) -> None:
    order = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with hold(tmp_path / "scan", "scan", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold(tmp_path / "scan", "scan"):
        thread.start()
        waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"] and list(tmp_path.iterdir()) == []


def test_who_loses_its_lock_stops(tmp_path: Path, monkeypatch, caplog) -> None:
    """As after a night of sleep, in which another host took the lock over."""
    stopped = threading.Event()
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    monkeypatch.setattr("_thread.interrupt_main", stopped.set)
    with hold(tmp_path / "out", "run"):
        (tmp_path / ".out.lock").unlink()
        assert stopped.wait(60)
    assert "the lock was lost" in caplog.text


def test_an_extraction_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    manifest = Manifest.from_rows([{"clip_id": "a", "path": "a.wav"}], tmp_path)
    with (
        hold(tmp_path / "sound" / SUMMARY, "extraction"),
        pytest.raises(HeldError, match=r"extraction .*is being written"),
    ):
        extract_all(manifest, tmp_path / "sound", workers=0, progress=False)
