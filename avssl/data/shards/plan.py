"""Which spans of which files become which samples of which shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avssl.data.manifest import Manifest


@dataclass(frozen=True)
class Span:
    """A stretch of a file, and the rows of the manifest that name it."""

    path: str
    start: float
    end: float
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A tar to write: its name, and the spans of its samples by their keys."""

    name: str
    spans: dict[str, Span]

    @property
    def record(self) -> str:
        """The file that tells what the finished tar holds; there is none before."""
        return self.name.removesuffix(".tar") + ".json"


def plan(manifest: Manifest, samples_per_shard: int) -> list[Shard]:
    """The shards of a scanned manifest: the same rows give the same ones."""
    spans: dict[tuple[str, str, float, float], list[int]] = {}
    reasons = manifest.reasons()
    lows, highs = (bounds.tolist() for bounds in manifest.spans(()))
    columns = zip(manifest.column("split"), manifest.column("path"), lows, highs, strict=True)
    for row, (split, path, low, high) in enumerate(columns):
        if not reasons[row] and high > low:
            spans.setdefault((split, path, low, high), []).append(row)
    shards: list[Shard] = []
    for split in sorted({key[0] for key in spans}):
        mine = [Span(*key[1:], tuple(rows)) for key, rows in spans.items() if key[0] == split]
        order = np.random.default_rng(0).permutation(len(mine))
        for number, first in enumerate(range(0, len(mine), samples_per_shard)):
            chosen = order[first : first + samples_per_shard]
            shards.append(
                Shard(
                    f"{split or 'clips'}-{number:06d}.tar",
                    {f"{first + k:09d}": mine[index] for k, index in enumerate(chosen)},
                )
            )
    return shards
