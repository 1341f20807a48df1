"""The typed batch that data loading hands to a task."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
        audio_fraction: (B,) float32 share of ``audio`` that is signal; the rest, at its end as a rule, is zeros.
        samples: (B,) int64 samples of ``audio``, from its beginning, that the media cover; padding follows. None: all.
        mixed_share: (B,) float32 each clip's own share of the blend with another that it is; None without such blends.
        mixed_labels: as ``labels``, of the other clips; its own of a clip that is not blended; empty without blends.
        failures: rows that could not be decoded while this batch was made.
        missing: rows asked for that gave no clip: absent from an evaluation batch, or, in training, without any
            replacement that could be read.
    """

    audio: Tensor | None
    video: Tensor | None
    labels: dict[str, Tensor]
    index: Tensor
    clip_ids: list[str]
    start: Tensor
    audio_fraction: Tensor
    samples: Tensor | None = None
    mixed_share: Tensor | None = None
    mixed_labels: dict[str, Tensor] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    missing: int = 0

    @property
    def size(self) -> int:
        """Number of clips, B."""
        return len(self.clip_ids)

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The batch with its tensors on ``device``; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the loader's ``pin_memory=True``)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tells the allocator that ``stream`` uses the tensors, which another one made."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            audio=None if self.audio is None else function(self.audio),
            video=None if self.video is None else function(self.video),
            labels={head: function(label) for head, label in self.labels.items()},
            index=function(self.index),
            audio_fraction=function(self.audio_fraction),
            samples=None if self.samples is None else function(self.samples),
            mixed_share=None if self.mixed_share is None else function(self.mixed_share),
            mixed_labels={head: function(label) for head, label in self.mixed_labels.items()},
        )
