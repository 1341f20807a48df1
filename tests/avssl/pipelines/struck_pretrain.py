"""Runs ``avssl pretrain``, one of whose processes is struck by a signal as soon as it has saved its n-th checkpoint.

``STRIKE="SIGNAL RANK N"`` in the environment says how. A watcher beside the run would come too late on a busy machine.
A run that torchrun has restarted is left alone.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from avssl.checkpoint import CheckpointStore
from avssl.commands import main


def strike_after_save() -> None:
    number, rank, saves = map(int, os.environ["STRIKE"].split())
    save, count = CheckpointStore.save, 0

    def struck(self: CheckpointStore, *arguments: Any) -> Path:
        nonlocal count
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
