"""Runs ``avssl pretrain``, one of whose processes is struck by a signal as soon as it has saved its n-th checkpoint.

``STRIKE="SIGNAL RANK N"`` in the environment says how. Each process writes the names of its semaphores into the folder
``STRIKE_NOTES`` before that. A watcher beside the run would come too late on a busy machine.
A run that torchrun has restarted is left alone.
"""

import gc
import os
import signal
import sys
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any

from avssl.checkpoint import CheckpointStore
from avssl.commands import main


def note_semaphores(rank: int) -> None:
    """As they are called in /dev/shm; those of decoding processes are among them."""
    if "STRIKE_NOTES" in os.environ:
        locks = [lock for lock in gc.get_objects() if isinstance(lock, SemLock)]
        names = [f"sem.{lock._semlock.name.removeprefix('/')}" for lock in locks]  # type: ignore[attr-defined]
        Path(os.environ["STRIKE_NOTES"], str(rank)).write_text("\n".join(names))


def strike_after_save() -> None:
    number, rank, saves = map(int, os.environ["STRIKE"].split())
    save, count = CheckpointStore.save, 0

    def struck(self: CheckpointStore, *arguments: Any) -> Path:
        nonlocal count
        if not count:
            note_semaphores(self.fabric.global_rank)
        path = save(self, *arguments)
        count += 1
        if self.fabric.global_rank == rank and count == saves:
            os.kill(os.getpid(), signal.Signals(number))
        return path

    CheckpointStore.save = struck  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        strike_after_save()
    sys.exit(main(["pretrain", *sys.argv[1:]]))
