"""Which rows make which batch: numbers drawn from a seed and a position, so that a run resumes anywhere.

Class-balanced sampling draws rows of rare classes as often as those of common ones.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

Key = tuple[int, int]


class StepSampler(Sampler[list[Key]]):
    """Endless batches of ``(epoch, row)`` keys from any step on; a resumed run draws what it would have drawn.

    Epoch ``e`` is a permutation drawn from ``(seed, e)`` alone, cut into global batches of ``batch_size * world``
    rows, of which each rank takes its part. Position is a number, so resuming costs nothing however far the run was.

    Args:
        size: Rows.
        batch_size: Keys per step and rank.
        seed: Seed of the permutations.
        start_step: Step to begin with, counted from the beginning of the run over all epochs.
        rank, world: This process and the number of processes.
        drop_last: Leave out the rows of an epoch that fill no global batch; otherwise its last batch is filled up with
            the first rows of its permutation, so that batches are always of one size.

    Attributes:
        skip: Further steps that the next iterator leaves out, which a loader has handed over already.
    """

    skip = 0

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ) -> None:
        if size < 1:
            raise DataError("no clip to train on: check the split and the manifest's errors")
        if batch_size < 1 or not 0 <= rank < world or start_step < 0:
            raise ValueError(f"wrong {batch_size=}, {rank=}, {world=} or {start_step=}")
        self.size, self.batch_size, self.seed, self.start_step = size, batch_size, seed, start_step
        self.rank, self.world = rank, world
        total = batch_size * world
        self.steps_per_epoch = size // total if drop_last else -(-size // total)
        if not self.steps_per_epoch:
            raise DataError(
                f"{size} training clips fill no batch of {batch_size} on {world} process(es): "
                f"lower batch_size to at most {size // world}"
            )

    def batch(self, step: int) -> list[Key]:
        """This rank's keys of global ``step``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._cut(epoch, position, self._permutation(epoch))

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, position = divmod(self.start_step + self.skip, self.steps_per_epoch)
        while True:
            permutation = self._permutation(epoch)
            for k in range(position, self.steps_per_epoch):
                yield self._cut(epoch, k, permutation)
            epoch, position = epoch + 1, 0

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.size)

    def _cut(self, epoch: int, position: int, permutation: np.ndarray) -> list[Key]:
        first = (position * self.world + self.rank) * self.batch_size
        places = np.arange(first, first + self.batch_size) % self.size
        return [(self._draw(epoch, int(place)), int(permutation[place])) for place in places]

    def _draw(self, epoch: int, place: int) -> int:
        """First number of the key at ``place`` of the epoch."""
        return epoch


class WeightedSampler(StepSampler):
    """A `StepSampler` whose epochs are ``size`` rows drawn with replacement, from ``(seed, epoch)`` alone.

    Keys are ``(draw, row)``: a row that comes several times in an epoch is cut and augmented anew each time.

    Args:
        shares: (N,) probability of each row, of sum 1.
        batch_size, seed, start_step, rank, world, drop_last: See :class:`StepSampler`.
    """

    def __init__(
        self,
        shares: np.ndarray,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ) -> None:
        super().__init__(len(shares), batch_size, seed, start_step, rank, world, drop_last)
        self.shares = shares

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).choice(self.size, self.size, p=self.shares)

    def _draw(self, epoch: int, place: int) -> int:
        return epoch * self.size + place


class ShardSampler(StepSampler):
    """A `StepSampler` that works through a few shards at a time, for shards that are slow to jump between.

    An epoch draws the order of the shards, takes ``buffer`` of them at a time, and shuffles the rows of these, all
    from ``(seed, epoch)`` alone. So every row still comes once an epoch, batches are cut, shared out to processes and
    resumed like any order, and at any time all processes read the same ``buffer`` shards (``2 buffer`` at a border).

    Args:
        shards: (N,) int64 shard of each row.
        buffer: Shards whose rows are mixed.
        batch_size, seed, start_step, rank, world, drop_last: See :class:`StepSampler`.
    """

    def __init__(
        self,
        shards: np.ndarray,
        buffer: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ) -> None:
        super().__init__(len(shards), batch_size, seed, start_step, rank, world, drop_last)
        if buffer < 1:
            raise ValueError(f"buffer: must be at least 1, got {buffer}")
        self.buffer = buffer
        order = np.argsort(shards, kind="stable")
        self.rows = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.rows))
        buffers = [order[first : first + self.buffer] for first in range(0, len(order), self.buffer)]
        return np.concatenate([rng.permutation(np.concatenate([self.rows[k] for k in some])) for some in buffers])


class EvalSampler(Sampler[list[Key]]):
    """Every row exactly once over all ranks, in order: rank ``r`` has the ``r``-th of ``world`` contiguous parts.

    Ranks may have different numbers of batches: gather after the pass, not within it. ``skip`` is the number of batches
    that the next iterator leaves out.
    """

    skip = 0

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"wrong {batch_size=}, {rank=} or {world=}")
        self.rows = range(size * rank // world, size * (rank + 1) // world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(self.skip * self.batch_size, len(self.rows), self.batch_size):
            yield [(0, row) for row in self.rows[first : first + self.batch_size]]


logger = logging.getLogger(__name__)


def balanced_shares(manifest: Manifest, heads: Sequence[str]) -> NDArray[np.float64]:
    """Probability (N,) of each row to be drawn, of sum 1.

    A row weighs the sum over its labels of 1 / rows of that class (AST: Gong et al. 2021). With one label a clip that
    draws every class equally often. Several heads have equal parts in the sum. A row without any label is never drawn.

    Raises:
        DataError: not one row has a label under ``heads``.
    """
    weights = np.zeros(len(manifest))
    for head in heads:
        rows, classes = manifest.label_pairs(head)
        if len(rows):
            counts = np.bincount(classes)
            by_label = 1 / (counts[classes] * np.count_nonzero(counts))
            weights += np.bincount(rows, by_label, minlength=len(manifest))
    if not weights.any():
        named = ", ".join(heads) or "none"
        raise DataError(f"data.sampling balanced needs labels: no training clip has one (heads: {named}); use shuffle")
    never = int((weights == 0).sum())
    if never:
        logger.warning("balanced sampling never draws %d of %d training clips: they have no label", never, len(weights))
    return weights / weights.sum()
