"""The queue of past keys that momentum contrast takes its negatives from."""

import torch
from torch import Tensor, nn


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
