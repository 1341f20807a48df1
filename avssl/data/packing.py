"""A batch on its way from a decoding process: all of its tensors in one piece of memory.

A tensor that a worker hands over costs both sides a file descriptor, a connection and a mapping, some half a
millisecond: for a batch with labels of several heads more than decoding cached clips. In one piece it costs that once.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avssl.data.batch import Batch
from avssl.data.failures import Failure

_ALIGNMENT = 64


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the buffer."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def view(self, buffer: Tensor) -> Tensor:
        size = math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.offset : self.offset + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedBatch:
    """Everything of a :class:`Batch`, its tensors one after another in ``buffer`` (bytes,) uint8."""

    buffer: Tensor
    places: dict[str, _Place]
    labels: dict[str, _Place]
    clip_ids: list[str]
    failures: list[Failure]
    missing: int

    def unpack(self) -> Batch:
        """The batch, its tensors views of the buffer."""
        found: dict[str, Any] = {"audio": None, "video": None}
        found |= {name: place.view(self.buffer) for name, place in self.places.items()}
        labels = {head: place.view(self.buffer) for head, place in self.labels.items()}
        return Batch(labels=labels, clip_ids=self.clip_ids, failures=self.failures, missing=self.missing, **found)

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory (called by the loader's ``pin_memory=True``)."""
        return dataclasses.replace(self, buffer=self.buffer.pin_memory())


def pack(batch: Batch) -> PackedBatch:
    """Copies the tensors of ``batch``, which are on the CPU, into one buffer; in a worker, into shared memory."""
    names = ("audio", "video", "index", "start", "audio_fraction")
    tensors = {name: tensor for name in names if (tensor := getattr(batch, name)) is not None}
    everything = [*tensors.values(), *batch.labels.values()]
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in everything]
    *offsets, size = itertools.accumulate(sizes, initial=0)
    places = [_Place(offset, tensor.shape, tensor.dtype) for offset, tensor in zip(offsets, everything, strict=True)]
    buffer = _allocate(size)
    for place, tensor in zip(places, everything, strict=True):
        place.view(buffer).copy_(tensor)
    return PackedBatch(
        buffer,
        places=dict(zip(tensors, places[: len(tensors)], strict=True)),
        labels=dict(zip(batch.labels, places[len(tensors) :], strict=True)),
        clip_ids=batch.clip_ids,
        failures=batch.failures,
        missing=batch.missing,
    )


def _allocate(size: int) -> Tensor:
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    # As torch's own collation does: what is made in shared memory is not copied on its way.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
