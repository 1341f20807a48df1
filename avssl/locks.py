"""One writer at a time: a lock for every folder or file that a command writes, on shared file systems, too."""

import _thread
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from avssl.files import atomic_path, remove_leftovers

logger = logging.getLogger(__name__)

# A holder gives a sign of life so often; one of another host that gave none for so long is taken to be dead.
HEARTBEAT, LEASE = 15.0, 90.0
POLL = 0.5


class HeldError(OSError):
    """Another process writes to the same place; the message says which, and since when."""


@contextmanager
def hold(path: str | os.PathLike[str], what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of ``path``, a folder or a file that is about to be written, whether or not it is there yet.

    The lock is a file beside ``path``. That of a process which has died is taken over: at once on its own host, on
    another one after 90 s without a sign of life.

    Args:
        path: What is written.
        what: What it is, for the message: "run", "cache".
        wait: Wait for the other one to be done, rather than refuse.

    Raises:
        HeldError: another process, or another thread of this one, holds it, and ``wait`` is False.
    """
    file = _lock_file(Path(os.path.abspath(path)))
    file.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(
        file, lease_duration=LEASE, heartbeat_interval=HEARTBEAT, on_compromise=_lost, thread_local=False
    )
    _acquire(lease, file, f"{what} {path}", wait)
    told = file.with_suffix(".json")
    remove_leftovers(told.parent, [told.name])
    try:
        with atomic_path(told) as temporary:
            temporary.write_text(json.dumps({**_myself(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        yield
    finally:
        told.unlink(missing_ok=True)
        lease.release(force=True)


@contextmanager
def hold_for_all(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """As :func:`hold`, by the first of several processes that work together, before they know of each other."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    with hold(path, what) if getattr(rank_zero_only, "rank", 0) == 0 else nullcontext():
        yield


def refuse_held(path: str | os.PathLike[str], what: str) -> None:
    """Raises HeldError where :func:`hold` would: before an hour is spent on what comes before the writing."""
    if _lock_file(Path(os.path.abspath(path))).exists():
        with hold(path, what):
            pass


def _lock_file(target: Path) -> Path:
    """Beside ``target``, so that it may be renamed; within it where its parent is not ours, as a mounted disk's."""
    above = target.parent
    inside = target.is_dir() and not os.access(above, os.W_OK)
    return target / ".lock" if inside else above / f".{target.name}.lock"


def _acquire(lease: SoftFileLease, file: Path, what: str, wait: bool) -> None:
    with suppress(Timeout):
        lease.acquire(timeout=0)
        return
    holder, beat = _holder(file), _beat(file)
    told = f"{holder['host']}, process {holder['pid']}, since {holder['since']}"
    if wait:
        logger.info("%s is being written by %s: waiting for it", what, told)
        lease.acquire(timeout=-1, poll_interval=POLL)
        return
    if holder["host"] != _myself()["host"]:
        # Whether a process of another host lives can only be seen by its signs of life.
        logger.info("%s is held by %s: waiting for a sign of life of it", what, told)
        while _beat(file) in (beat, None):
            with suppress(Timeout):
                lease.acquire(timeout=POLL, poll_interval=POLL)
                return
    raise HeldError(f"{what} is being written by {told}: wait for it, stop it, or choose another output")


def _holder(file: Path) -> dict[str, Any]:
    """Host, process and beginning of whoever holds the lock; the lock's own file says the first two at once."""
    unknown = {"host": "an unknown host", "pid": "unknown", "since": "just now"}
    with suppress(OSError, ValueError):
        lines = dict(line.partition("=")[::2] for line in file.read_text(encoding="utf-8").splitlines())
        unknown |= {key: lines[key] for key in ("host", "pid") if key in lines}
    with suppress(OSError, ValueError):
        told = dict(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        if str(told.get("pid")) == unknown["pid"]:
            return unknown | told
    return unknown


def _beat(file: Path) -> int | None:
    """Time of the last sign of life; None where the lock has just been released."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _lost(loss: LeaseCompromise) -> None:
    """Another process took the lock, since this one gave no sign of life for so long: it must not write on."""
    logger.error("%s: the lock was lost (%s): stopping, so that two do not write at once", loss.lock_file, loss.reason)
    _thread.interrupt_main()
