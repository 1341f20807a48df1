"""Runs tools/pretrain.py, one of whose processes is struck by a signal as soon as it has saved its n-th checkpoint.

``STRIKE="SIGNAL RANK N"`` in the environment says how. A watcher beside the run would come too late on a busy machine.
A run that torchrun has restarted is left alone.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

from avssl.checkpoint import CheckpointStore

TOOL = Path(__file__).parents[3] / "tools" / "pretrain.py"


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
    # Not runpy: it puts the tool's name into sys.argv, by which Fabric starts the other processes.
    spec = importlib.util.spec_from_file_location("tool", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sys.exit(tool.main())
