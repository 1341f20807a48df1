"""A batch on its way from a decoding process: all of its tensors in one piece of memory.

A tensor that a worker hands over costs both sides a file descriptor, a connection and a mapping, some half a
millisecond: for a batch with labels of several heads more than decoding cached clips. In one piece it costs that once,
and clips that are collated into that piece at once are copied only once.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avssl.data.batch import Batch
from avssl.data.failures import Failure

_ALIGNMENT = 64

Wanted = tuple[Sequence[int], torch.dtype]
Allocate = Callable[[Sequence[Wanted]], list[Tensor]]


def apart(wanted: Sequence[Wanted]) -> list[Tensor]:
    """Tensors of these shapes and types, each in memory of its own; their values are not set."""
    return [torch.empty(tuple(shape), dtype=dtype) for shape, dtype in wanted]


def together(wanted: Sequence[Wanted]) -> list[Tensor]:
    """The same one after another in one piece of memory; in a worker, in shared memory."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    *offsets, total = itertools.accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0)
    buffer = _allocate(total)
    return [
        buffer[offset : offset + size].view(dtype).view(tuple(shape))
        for offset, size, (shape, dtype) in zip(offsets, sizes, wanted, strict=True)
    ]


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a piece of memory; offset and strides in values."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Place":
        return cls(int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def view(self, buffer: Tensor) -> Tensor:
        return buffer.view(self.dtype).as_strided(self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class PackedBatch:
    """Everything of a :class:`Batch`, its tensors in ``buffer`` (bytes,) uint8."""

    buffer: Tensor
    places: dict[str, _Place]
    labels: dict[str, _Place]
    mixed_labels: dict[str, _Place]
    clip_ids: list[str]
    failures: list[Failure]
    missing: int

    def unpack(self) -> Batch:
        """The batch, its tensors views of the buffer."""
        found: dict[str, Any] = {"audio": None, "video": None}
        found |= {name: place.view(self.buffer) for name, place in self.places.items()}
        found["labels"] = {head: place.view(self.buffer) for head, place in self.labels.items()}
        found["mixed_labels"] = {head: place.view(self.buffer) for head, place in self.mixed_labels.items()}
        return Batch(clip_ids=self.clip_ids, failures=self.failures, missing=self.missing, **found)

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory (called by the loader's ``pin_memory=True``)."""
        return dataclasses.replace(self, buffer=self.buffer.pin_memory())


def pack(batch: Batch) -> PackedBatch:
    """``batch``, whose tensors :func:`together` made, as one piece; nothing is copied.

    Raises:
        ValueError: its tensors lie apart.
    """
    names = ("audio", "video", "index", "start", "audio_fraction", "samples", "mixed_share")
    tensors = {name: tensor for name in names if (tensor := getattr(batch, name)) is not None}
    memory = batch.index.untyped_storage()
    if any(
        tensor.untyped_storage().data_ptr() != memory.data_ptr()
        for tensor in (*tensors.values(), *batch.labels.values(), *batch.mixed_labels.values())
    ):
        raise ValueError("only a batch whose tensors lie together can be packed: collate it with allocate=together")
    return PackedBatch(
        torch.empty(0, dtype=torch.uint8).set_(memory),
        places={name: _Place.of(tensor) for name, tensor in tensors.items()},
        labels={head: _Place.of(tensor) for head, tensor in batch.labels.items()},
        mixed_labels={head: _Place.of(tensor) for head, tensor in batch.mixed_labels.items()},
        clip_ids=batch.clip_ids,
        failures=batch.failures,
        missing=batch.missing,
    )


def _allocate(size: int) -> Tensor:
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    # As torch's own collation does: what is made in shared memory is not copied on its way.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
