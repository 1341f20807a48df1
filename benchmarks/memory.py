"""Memory of this process and of those that it started, as Linux counts it."""

import os
import threading
from pathlib import Path
from types import TracebackType


def memory_mib(pid: int) -> dict[str, float]:
    """``rss``; ``pss``, which shares out common pages; ``uss``, pages that no other process has. Of a dead one: {}."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    uss = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"rss": kib["Rss"] / 1024, "pss": kib["Pss"] / 1024, "uss": uss / 1024}


def descendants(pid: int) -> list[int]:
    """Processes started by ``pid``, by those that it started, and so on."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, last = [], [pid]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found


class MemoryWatch:
    """Samples the proportional memory (PSS) of this process and all its descendants while the block runs.

    Attributes:
        samples: their sum in MiB, one every ``interval`` seconds.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.interval = interval
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            pids = [os.getpid(), *descendants(os.getpid())]
            self.samples.append(sum(memory_mib(pid).get("pss", 0.0) for pid in pids))

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
