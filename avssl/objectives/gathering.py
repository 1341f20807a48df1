"""Batches of all processes, in the order of the processes; with one process, everything as it is."""

import torch
from lightly.utils.dist import gather, world_size
from torch import Tensor


def gather_with_gradient(rows: Tensor) -> Tensor:
    """(B, ...) of every process -> (B * processes, ...), through which gradients flow back to their process.

    A loss of the gathered batch, the same on every process, then has the gradients of one process with that batch once
    they are averaged over the processes, as DDP does.
    """
    return torch.cat(gather(rows)) if world_size() > 1 else rows


@torch.no_grad()
def gather_constant(rows: Tensor) -> Tensor:
    """(B, ...) of every process -> (B * processes, ...), detached: for queues, banks, labels and indices."""
    if world_size() == 1:
        return rows.detach()
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    torch.distributed.all_gather(parts, rows)
    return torch.cat(parts)
