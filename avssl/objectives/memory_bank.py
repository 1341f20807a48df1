"""Memory banks: something kept for every row of the training split, and draws from its rows."""

import torch
import torch.nn.functional as F
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
