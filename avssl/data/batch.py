"""The typed batch that data loading hands to a task, and how it travels from a decoding process.

A tensor that a worker hands over costs both sides a file descriptor, a connection and a mapping, some half a
millisecond: for a batch with labels of several heads more than decoding cached clips. With all tensors in one piece of
memory it costs that once, and clips that are collated into that piece at once are copied only once.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from avssl.data.failures import Failure


@dataclass(frozen=True)
class Batch:
    """Clips of one step. Every tensor's first dimension is B, which is 0 when nothing of an evaluation batch decoded.

    Args:
        audio: (B, S) float32 mono waveform at the dataset's sample rate; None without audio.
        video: (B, 3, T, H, W) uint8 RGB, in memory as decoded, (B, T, H, W, 3); None without video.
        labels: head name -> (B,) int64 class, -1 where unlabelled; of a multi-label head (B, C) float32 zeros and ones,
            a row of -1 where unlabelled.
        index: (B,) int64 manifest row of each clip; a row with several clips appears several times in a run.
        clip_ids: B manifest ids.
        start: (B,) float64, second in the file at which the clip starts; stays on the CPU (some devices lack float64).
        samples: (B,) int64 samples of ``audio``, from its beginning, that the media cover; padding follows. None: all.
        mixed_share: (B,) float32 each clip's own share of the blend with another that it is; None without such blends.
        mixed_labels: as ``labels``, of the other clips; its own of a clip that is not blended; empty without blends.
        failures: rows that could not be decoded while this batch was made.
        missing: rows asked for that gave no clip: absent from an evaluation batch, or, in training, without any
            replacement that could be read.
        rows: rows that were read for the batch, the partners of blends included; None: one for each clip.
    """

    audio: Tensor | None
    video: Tensor | None
    labels: dict[str, Tensor]
    index: Tensor
    clip_ids: list[str]
    start: Tensor
    _: KW_ONLY
    samples: Tensor | None = None
    mixed_share: Tensor | None = None
    mixed_labels: dict[str, Tensor] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    missing: int = 0
    rows: int | None = None

    @property
    def rows_read(self) -> int:
        """Rows that were read for the batch."""
        return self.size if self.rows is None else self.rows

    @property
    def size(self) -> int:
        """Number of clips, B."""
        return len(self.clip_ids)

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The batch with its tensors on ``device``; copies from pinned memory do not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the loader's ``pin_memory=True``)."""
        return self.map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tells the allocator that ``stream`` uses the tensors, which another one made."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self.map(record)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with ``function`` of each of its tensors, but for ``start``."""
        return replace(
            self,
            audio=None if self.audio is None else function(self.audio),
            video=None if self.video is None else function(self.video),
            labels={head: function(label) for head, label in self.labels.items()},
            index=function(self.index),
            samples=None if self.samples is None else function(self.samples),
            mixed_share=None if self.mixed_share is None else function(self.mixed_share),
            mixed_labels={head: function(label) for head, label in self.mixed_labels.items()},
        )


_ALIGNMENT = 64

Wanted = tuple[Sequence[int], torch.dtype]
Allocate = Callable[[Sequence[Wanted]], list[Tensor]]


def separate_tensors(wanted: Sequence[Wanted]) -> list[Tensor]:
    """Tensors of these shapes and types, each in memory of its own; their values are not set."""
    return [torch.empty(tuple(shape), dtype=dtype) for shape, dtype in wanted]


def tensors_in_one_buffer(wanted: Sequence[Wanted]) -> list[Tensor]:
    """The same one after another in one piece of memory; in a worker, in shared memory."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    *offsets, total = itertools.accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0)
    buffer = _allocate(total)
    return [
        buffer[offset : offset + size].view(dtype).view(tuple(shape))
        for offset, size, (shape, dtype) in zip(offsets, sizes, wanted, strict=True)
    ]


@dataclass(frozen=True)
class _Slice:
    """Where a tensor lies in a piece of memory; offset and strides in values."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Slice":
        return cls(int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def view(self, buffer: Tensor) -> Tensor:
        return buffer.view(self.dtype).as_strided(self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class PackedBatch:
    """Everything of a :class:`Batch`, its tensors in ``buffer`` (bytes,) uint8."""

    buffer: Tensor
    slices: dict[str, _Slice]
    labels: dict[str, _Slice]
    mixed_labels: dict[str, _Slice]
    clip_ids: list[str]
    failures: list[Failure]
    missing: int
    rows: int | None

    def unpack(self) -> Batch:
        """The batch, its tensors views of the buffer."""
        found: dict[str, Any] = {"audio": None, "video": None}
        found |= {name: part.view(self.buffer) for name, part in self.slices.items()}
        found["labels"] = {head: part.view(self.buffer) for head, part in self.labels.items()}
        found["mixed_labels"] = {head: part.view(self.buffer) for head, part in self.mixed_labels.items()}
        return Batch(clip_ids=self.clip_ids, failures=self.failures, missing=self.missing, rows=self.rows, **found)

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory (called by the loader's ``pin_memory=True``)."""
        return dataclasses.replace(self, buffer=self.buffer.pin_memory())


def pack(batch: Batch) -> PackedBatch:
    """``batch``, whose tensors :func:`tensors_in_one_buffer` made, as one piece; nothing is copied.

    Raises:
        ValueError: its tensors lie in several pieces of memory.
    """
    names = ("audio", "video", "index", "start", "samples", "mixed_share")
    tensors = {name: tensor for name in names if (tensor := getattr(batch, name)) is not None}
    memory = batch.index.untyped_storage()
    if any(
        tensor.untyped_storage().data_ptr() != memory.data_ptr()
        for tensor in (*tensors.values(), *batch.labels.values(), *batch.mixed_labels.values())
    ):
        raise ValueError(
            "only a batch whose tensors lie in one buffer can be packed: collate it with allocate=tensors_in_one_buffer"
        )
    return PackedBatch(
        torch.empty(0, dtype=torch.uint8).set_(memory),
        slices={name: _Slice.of(tensor) for name, tensor in tensors.items()},
        labels={head: _Slice.of(tensor) for head, tensor in batch.labels.items()},
        mixed_labels={head: _Slice.of(tensor) for head, tensor in batch.mixed_labels.items()},
        clip_ids=batch.clip_ids,
        failures=batch.failures,
        missing=batch.missing,
        rows=batch.rows,
    )


def _allocate(size: int) -> Tensor:
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    # As torch's own collation does: what is made in shared memory is not copied on its way.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
