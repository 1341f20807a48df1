"""Tells of a run whose embeddings collapse, from the rows that it logs."""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

# Ranks of the joint embeddings, which are what objectives pull together; features may have a strong mean and be fine.
RANKS = ("train/diagnostics/audio_rank", "train/diagnostics/video_rank")


class CollapseMonitor:
    """Says once that an effective rank, averaged over the last logged rows, is below a bound.

    Args:
        bound: Smallest effective rank of a sound embedding; a collapsed one has 1. 0 never tells.
        after: Steps that are not looked at: before the end of the warm-up a low rank is no sign.
        window: Rows that are averaged, and the fewest on which a verdict rests.

    Raises:
        ValueError: for a negative bound.
    """

    def __init__(self, bound: float, after: int = 0, window: int = 5) -> None:
        if not bound >= 0:
            raise ValueError(f"collapse_rank: must be at least 0, got {bound}")
        self.bound, self.after, self.told = bound, after, False
        self._last: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))

    def see(self, row: Mapping[str, Any], step: int) -> str | None:
        """Takes in a logged row; returns the message where it is due."""
        if self.told or step <= self.after:
            return None
        for name in RANKS:
            if name not in row or not math.isfinite(row[name]):
                continue
            ranks = self._last[name]
            ranks.append(row[name])
            mean = sum(ranks) / len(ranks)
            if len(ranks) == ranks.maxlen and mean < self.bound:
                self.told = True
                return (
                    f"step {step}: the embedding is collapsing: {name} was {mean:.2f} on average over the last "
                    f"{len(ranks)} rows, below collapse_rank {self.bound:g}. Lower optim.lr, raise optim.batch_size "
                    "or add an objective that spreads embeddings out"
                )
        return None
