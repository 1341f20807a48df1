"""Progress of anything that may take longer than a few seconds: a bar on a terminal, a line every so often in a log.

    for file in track(files, "scan", "file"):
        ...
    with Meter("embed", total=1000, unit="clip") as meter:
        meter.update(32)
    with Meter("fitting the linear probe"):  # nothing to count: shows for how long it has been at it
        ...

What is done at once shows nothing. Of several processes of one run only the first shows any.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

# Seconds: after which there is a bar, and between its updates; until the first line of a log, and between the others.
BAR_DELAY, BAR_EVERY = 2.0, 0.5
FIRST_LINE, LINE_EVERY = 5.0, 30.0
_WINDOW = 5  # lines of a log that a rate is taken over: the first steps of a run are slower than the rest
# Where torchrun, Fabric's own launcher and SLURM say which process of a run this one is.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_open: list["Meter"] = []


def track(
    items: Iterable[Item], what: str, unit: str, *, total: int | None = None, shown: bool = True
) -> Iterator[Item]:
    """Yields ``items`` and shows how many of them are done.

    Args:
        items: What is gone through.
        what: What is done with them.
        unit: What one of them is called.
        total: How many there are; default: their length where they have one.
        shown: False shows nothing.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Meter(what, total=total, unit=unit, shown=shown) as meter:
        for item in items:
            yield item
            meter.update()


def _tell(line: str) -> None:
    if logger.hasHandlers():
        logger.info("%s", line)
    else:  # a script that says nothing of logging would be silent for hours
        sys.stderr.write(f"{line}\n")


def lines_above_bars() -> AbstractContextManager[None]:
    """Has what is logged to a terminal meanwhile go above the bars, not through them."""
    return logging_redirect_tqdm() if sys.stderr.isatty() else nullcontext()


class Meter:
    """Shows how far something is, how fast it goes and how long it will still take.

    On a terminal and in a notebook a tqdm bar that appears after 2 s; elsewhere an INFO line after 5 s, then every
    30 s. Where one runs inside another, the inner one speaks.

    Args:
        what: What is done.
        total: How much there is to do; None: not known.
        initial: How much of it was done before.
        unit: What is counted: clip, file, step; B for bytes; empty where nothing is.
        shown: False shows nothing.
    """

    def __init__(
        self, what: str, *, total: int | None = None, initial: int = 0, unit: str = "", shown: bool = True
    ) -> None:
        self.what, self.total, self.unit, self.count = what, total, unit, initial
        self.shown = shown and not any(os.environ.get(name, "0") != "0" for name in _RANKS)
        self._initial, self._note = initial, ""
        self._terminal = sys.stderr.isatty() or "ipykernel" in sys.modules  # a notebook draws bars, too
        self._bar: Any = None
        self._told = False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"progress of {what}", daemon=True)

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        self._marks = deque([(self._start, self.count)], maxlen=_WINDOW + 1)
        if self.shown:
            _open.append(self)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.shown:
            return
        self._stop.set()
        self._thread.join()
        _open.remove(self)
        if self._told and _open and not _open[-1].unit:
            _open[-1]._last = time.monotonic()  # which has nothing to add to what was said just now
        if self._bar is not None:
            self._refresh()
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.count += count
        # Where another one runs inside, and speaks, the thread keeps still.
        if self.shown and not self._terminal and time.monotonic() - self._last >= LINE_EVERY:
            self._line()

    def note(self, text: str) -> None:
        """Something to show beside the numbers: the loss, how many failed."""
        self._note = text

    def _watch(self) -> None:
        while not self._stop.wait(self._wait()):
            if self._terminal:
                self._refresh()
            elif _open and _open[-1] is self and time.monotonic() - self._last >= self._pause():
                self._line()

    def _wait(self) -> float:
        if self._terminal:
            return BAR_DELAY if self._bar is None else BAR_EVERY
        return max(0.01, min(self._last + self._pause() - time.monotonic(), self._pause()))

    def _pause(self) -> float:
        return LINE_EVERY if self._told else FIRST_LINE

    def _refresh(self) -> None:
        if self._bar is None:
            scale = self.unit == "B"
            shape = None if self.unit else "{desc}: {elapsed}{postfix}"
            self._bar = tqdm(
                total=self.total, initial=self._initial, desc=self.what, unit=self.unit or "it", unit_scale=scale,
                leave=None, smoothing=0, dynamic_ncols=True, bar_format=shape, file=sys.stderr,
            )  # fmt: skip
            self._bar.start_t -= self._seconds()
        self._bar.n = self.count
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.refresh()

    def _line(self) -> None:
        with self._lock:
            now = time.monotonic()
            since, before = self._marks[0]
            parts = [self._amount()] if self.unit else []
            if self.count > before:
                parts.append(self._rate(self.count - before, now - since))
            if self.count > before and self.total:
                left = max(0, self.total - self.count) * (now - since) / (self.count - before)
                parts.append(f"{tqdm.format_interval(left)} left")
            elif self.count == before:
                parts.append(f"{tqdm.format_interval(self._seconds())} so far")
            parts += [self._note] if self._note else []
            self._marks.append((now, self.count))
            self._last, self._told = now, True
            _tell(f"{self.what}: {', '.join(parts)}")

    def _amount(self) -> str:
        """ "12 of 50 clips (24 %)", or "12 clips" where the total is not known."""
        if not self.total:
            return self._measure(self.count)
        done = self._measure(self.count) if self.unit == "B" else str(self.count)
        return f"{done} of {self._measure(self.total)} ({100 * self.count / self.total:.0f} %)"

    def _measure(self, count: float) -> str:
        if self.unit == "B":
            return f"{tqdm.format_sizeof(count)}B"
        return f"{count:.0f} {self.unit if count == 1 else self._units()}"

    def _rate(self, count: int, seconds: float) -> str:
        rate = count / max(seconds, 1e-9)
        if self.unit == "B":
            return f"{tqdm.format_sizeof(rate)}B/s"
        if rate < 1:
            return f"{1 / rate:.1f} s a {self.unit}"
        return f"{rate:.1f} {self._units()}/s"

    def _units(self) -> str:
        return self.unit + ("es" if self.unit.endswith(("ch", "s", "x")) else "s")

    def _seconds(self) -> float:
        return time.monotonic() - self._start
