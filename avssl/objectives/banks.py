"""What objectives remember between steps: memory banks, queues of keys, and teachers that follow by momentum."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn


def check_rows(index: Tensor, clips: int, name: str) -> None:
    """Refuses rows that a bank of ``clips`` rows does not have.

    Raises:
        ValueError: naming the objective ``name`` and the first row outside.
    """
    outside = index[(index < 0) | (index >= clips)]
    if len(outside):
        raise ValueError(
            f"{name}: step.index must be rows of the training split, in [0, {clips - 1}], got {int(outside[0])}"
        )


def mean_by_row(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Averages what belongs to the same row: a row may have several clips in a batch.

    Args:
        index: (B,) rows, in any order.
        values: (B, D).

    Returns:
        The U distinct rows, ascending, and their means (U, D).
    """
    rows = index.unique()
    # A product, not index_add: on a GPU that sums in an order of its own, and the processes' banks would drift apart.
    belongs = (rows[:, None] == index).to(values.dtype)
    return rows, belongs @ values / belongs.sum(dim=1, keepdim=True)


def draw_rows(excluded: Tensor, clips: int, count: int) -> Tensor:
    """For each clip, rows out of ``[0, clips)`` without some of its own, uniformly and with replacement.

    Args:
        excluded: (B, E) distinct rows that must not be drawn, E < clips.
        clips: Rows to draw from.
        count: Rows per clip. If no fewer than the ``clips - E`` rows left, these are returned, without any draw.

    Returns:
        (B, min(count, clips - E)) rows, drawn from torch's global generator.
    """
    size, taken = excluded.shape
    left = clips - taken
    if count >= left:
        rank = torch.arange(left, device=excluded.device).expand(size, left).contiguous()
    else:
        rank = torch.randint(left, (size, count), device=excluded.device)
    # The row of rank r among those left is r + the number of excluded rows before it: those e_j (ascending) with
    # e_j - j <= r.
    before = excluded.sort(dim=1).values - torch.arange(taken, device=excluded.device)
    return rank + torch.searchsorted(before, rank, right=True)


class MemoryBank(nn.Module):
    """A unit vector for every row of the training split, which follows the embeddings of its clips.

    Args:
        clips: Rows N.
        dim: Width D.
        momentum: Share of the old vector that an update keeps.
        seed: Of the random vectors at the beginning, which are the same on every process.

    Attributes:
        entries: (N, D) L2-normalized.
    """

    entries: Tensor

    def __init__(self, clips: int, dim: int, momentum: float, seed: int) -> None:
        super().__init__()
        self.momentum = momentum
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("entries", F.normalize(torch.randn(clips, dim, generator=generator), dim=1))

    @torch.no_grad()
    def update(self, index: Tensor, embeddings: Tensor) -> None:
        """Moves rows ``index`` (B,) towards ``embeddings`` (B, D); one that occurs repeatedly towards their mean."""
        rows, means = mean_by_row(index, embeddings.to(self.entries.dtype))
        self.entries[rows] = F.normalize(self.entries[rows].lerp(means, 1 - self.momentum), dim=1)


class KeyQueue(nn.Module):
    """The last ``size`` keys, first in, first out (He et al. 2020, section 3.1). Slots fill up from the first.

    Args:
        size: Keys that are kept; need not be a multiple of the batch.
        dim: Width D of a key.

    Attributes:
        keys: (size, D); zeros where nothing was written yet.
        pointer: Slot that is written next.
        filled: Slots that hold a key.
    """

    keys: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def empty_slots(self) -> Tensor:
        """(size,) True where no key was written yet."""
        return torch.arange(len(self.keys), device=self.keys.device) >= self.filled

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Writes ``keys`` (N, D) over the oldest; of more than ``size`` keys the last ones are kept."""
        size = len(self.keys)
        keys = keys[-size:]
        slots = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        # A copy takes over: the graph of this step's loss holds the keys as they were.
        self.keys = self.keys.index_copy(0, slots, keys.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))


@torch.no_grad()
def follow(
    teacher: Iterable[Tensor],
    student: Iterable[Tensor],
    step: int,
    max_steps: int,
    momentum: float,
    last: float = 1.0,
) -> None:
    """``m * teacher + (1 - m) * student``, with m rising from ``momentum`` to ``last`` on a cosine, as to 1 in BYOL
    (Grill et al. 2020).

    In place, unlike lightly's ``update_momentum``: sharded parameters need that.

    Args:
        teacher: Parameters that are moved.
        student: Those that they move towards, in the same order.
        step: Optimizer steps taken, from 1.
        max_steps: Steps of the whole run.
        momentum: m at the first step.
        last: m at the last one.
    """
    m = cosine_schedule(min(step, max_steps) - 1, max_steps, momentum, last)
    torch._foreach_lerp_(list(teacher), list(student), 1 - m)
