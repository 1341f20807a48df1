"""A manifest row -> decoded clips: waveform and frames of the same span, nothing else (augmentation is on device)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from avssl.data.batch import Allocate, Batch, separate_tensors
from avssl.data.failures import Failure
from avssl.data.file_stats import times_hold, unchanged
from avssl.data.manifest import ClipRow, Manifest
from avssl.data.media import Channel, MediaError, MediaFile
from avssl.data.media.audio import check_channel
from avssl.data.mixup import SetMixup, mix_frames, mix_waveforms
from avssl.data.shards.sample import CachedSample, open_source
from avssl.data.spans import ClipSpan, center_span, frame_times, random_span, uniform_spans, why_not_cut

Mode = Literal["random", "center", "uniform"]
Modality = Literal["audio", "video"]


class Watch(Protocol):
    """Told which row is being decoded, so that a hang can name its file; -1 when none is."""

    def __call__(self, index: int) -> None: ...


@dataclass(frozen=True)
class Clip:
    """One decoded clip: ``audio`` (S,) float32, ``video`` (T, H, W, 3) uint8, and where it came from.

    ``samples`` of ``audio`` are covered by the media, zeros follow; ``audio_fraction`` is the share that is signal. Of
    a blend with another clip, ``share`` is this one's part, and ``mixed_labels`` are the other's labels.
    """

    audio: np.ndarray | None
    video: np.ndarray | None
    labels: Mapping[str, int | list[int] | None]
    index: int
    clip_id: str
    start: float
    audio_fraction: float
    samples: int = 0
    share: float = 1.0
    mixed_labels: Mapping[str, int | list[int] | None] | None = None


@dataclass(frozen=True)
class Item:
    """What one key of a :class:`ClipDataset` gave: its clips (none when nothing could be read) and the failures.

    ``rows`` were read for it: its own, and that of the clips that it is blended with.
    """

    clips: list[Clip] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    rows: int = 0


class ClipDataset(Dataset[Item]):
    """Decodes clips of a scanned manifest; keys are ``(epoch, row)``.

    All randomness comes from ``(seed, epoch, row)``: whichever worker decodes a key, and whether or not the run was
    interrupted before, the clip is the same. A clip lies where every stream of ``modalities`` runs, inside the row's
    segment if it has one: see :meth:`Manifest.spans`. What is shorter than ``clip_seconds`` is zero-padded at the end
    (``Batch.samples`` tells) and its frames are spread over the media that is there. Frames are ``num_frames``
    midpoints of equal parts of the span, their short side resized to ``frame_size``, then the centre square is cut out.

    In training (``mode="random"``) a row that cannot be read is replaced by another one, drawn from the same
    ``(seed, epoch, row)``, at most ``retries`` times. In evaluation a row is never replaced: it is absent from the
    batch. Either way ``Batch.failures`` holds every failure.

    Args:
        manifest: The rows; ``manifest.usable(...)`` drops the ones known to be unreadable.
        modalities: "audio", "video" or both.
        clip_seconds: Length of a clip in seconds.
        sample_rate: Rate of the waveform in Hz.
        num_frames: Frames per clip.
        frame_size: Side of the square frames in pixels.
        channel: What is heard of several channels: "mean", or the number of one.
        mode: "random" (training), "center", or "uniform": ``clips_per_item`` spans spread evenly over the segment.
        clips_per_item: Clips per row; the collated batch holds rows x clips, ``Batch.index`` tells which is whose.
        seed: Seed of spans and replacements.
        retries: Replacements that are tried for a row that fails in training.
        mixup: Blends clips with others, drawn uniformly from all rows, in mode "random"; None does not.

    Attributes:
        watch: Told of the rows that are decoded.
        given_up: Why rows that hung or crashed a process are not tried again.

    Raises:
        ValueError: an argument makes no sense; the message names it.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        modalities: Sequence[Modality] = ("audio", "video"),
        clip_seconds: float,
        sample_rate: int = 16000,
        num_frames: int = 8,
        frame_size: int = 112,
        channel: Channel = "mean",
        mode: Mode = "random",
        clips_per_item: int = 1,
        seed: int = 0,
        retries: int = 8,
        mixup: SetMixup | None = None,
    ) -> None:
        if not modalities or not set(modalities) <= set(get_args(Modality)):
            raise ValueError(f"modalities must be audio, video or both, got {tuple(modalities)}")
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if mode == "center" and clips_per_item != 1:
            raise ValueError(f"mode='center' gives one clip per item, got clips_per_item={clips_per_item}")
        for name, value in {
            "clip_seconds": clip_seconds,
            "sample_rate": sample_rate,
            "num_frames": num_frames,
            "frame_size": frame_size,
            "clips_per_item": clips_per_item,
        }.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        check_channel(channel)
        if mixup is not None and mode != "random":
            raise ValueError(f"mixup is for training, mode='random', not for mode={mode!r}")
        self.mixup = mixup
        self.manifest = manifest
        self.modalities = tuple(modalities)
        self.clip_seconds = float(clip_seconds)
        self.sample_rate = sample_rate
        self.num_frames = num_frames
        self.frame_size = frame_size
        self.channel = channel
        self.mode: Mode = mode
        self.clips_per_item = clips_per_item
        self.seed = seed
        self.retries = retries
        self.watch: Watch | None = None
        self.given_up: dict[int, str] = {}
        self._times_hold = times_hold(manifest)

    @property
    def samples(self) -> int:
        """Samples of a clip's waveform, S."""
        return round(self.clip_seconds * self.sample_rate)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        # Every worker has a copy of the rows: of two million of AudioSet 220 MB, of all their columns 360 MB.
        return self.__dict__ | {"manifest": self.manifest.lean()}

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, first = key
        failures: list[Failure] = []
        clips = self._readable(first, np.random.default_rng((self.seed, epoch, first, 1)), epoch, failures)
        rows = int(bool(clips))
        if clips and self.mixup is not None:
            rng = np.random.default_rng((self.seed, epoch, first, 2))
            if (share := self.mixup.share(rng)) is not None:
                partner = int(rng.integers(len(self)))
                others = self._readable(partner, rng, epoch, failures)
                rows += bool(others)
                clips = [_blend(*pair, share) for pair in zip(clips, others, strict=True)] if others else clips
        return Item(clips, failures, rows)

    def _readable(self, index: int, rng: np.random.Generator, epoch: int, failures: list[Failure]) -> list[Clip]:
        """Clips of a row, or in training of one that ``rng`` draws in its place; none where none can be read."""
        for _ in range(1 + (self.retries if self.mode == "random" else 0)):
            try:
                return self._decode(index, np.random.default_rng((self.seed, epoch, index)))
            except MediaError as error:
                failures.append(Failure(str(error.path), error.reason, index, str(error)))
            index = int(rng.integers(len(self)))
        return []

    def spans(self, row: ClipRow, rng: np.random.Generator) -> list[ClipSpan]:
        """The spans of a row's clips.

        Raises:
            MediaError: the row has no known end; its streams do not cover its segment, do not overlap, or cover less
                than 5 % of what the segment would give.
        """
        low, high = row.span(self.modalities)
        if np.isnan(high):
            raise MediaError(row.path, "unknown duration")
        first, last = row.span(())
        wanted = min(self.clip_seconds, last - first)
        outside = any(end <= start for start, end in (row.span([name]) for name in self.modalities))
        padded = "audio" in self.modalities and wanted > 0  # pictures are not
        why = why_not_cut(low, high, outside, (high - low) / wanted if padded else 1.0)
        if why:
            raise MediaError(row.path, why, f"{max(0.0, high - low):.2f} of {max(0.0, wanted):.2f} s")
        if self.mode == "random":
            return [random_span(rng, low, high, self.clip_seconds) for _ in range(self.clips_per_item)]
        if self.mode == "center":
            return [center_span(low, high, self.clip_seconds)]
        return uniform_spans(low, high, self.clip_seconds, self.clips_per_item)

    def _decode(self, index: int, rng: np.random.Generator) -> list[Clip]:
        row = self.manifest.row(index)
        if index in self.given_up:
            raise MediaError(row.path, self.given_up[index])
        decoded: dict[ClipSpan, Clip] = {}  # a short segment gives the same span several times
        spans = self.spans(row, rng)
        watch = self.watch or _unwatched
        watch(index)
        modified = row.file_modified if self._times_hold else None
        try:
            with unchanged(row.path, row.file_bytes, modified), open_source(row.path) as source:
                for span in spans:
                    if span not in decoded:
                        watch(index)  # the time limit is a clip's
                        decoded[span] = self.read_clip(source, row, index, span)
        finally:
            watch(-1)
        return [decoded[span] for span in spans]

    def read_clip(self, source: MediaFile | CachedSample, row: ClipRow, index: int, span: ClipSpan) -> Clip:
        """The clip at ``span`` of ``source``, an opened file or sample of row ``index``, before it is augmented.

        Raises:
            MediaError: it cannot be read.
        """
        audio, fraction, video, samples = None, 0.0, None, 0
        if "audio" in self.modalities:
            audio = np.zeros(self.samples, dtype=np.float32)
            clip = source.audio(span.start, span.available, self.sample_rate, self.channel)
            waveform = clip.waveform[: self.samples]
            audio[: len(waveform)] = waveform
            samples = len(waveform)
            fraction = clip.valid * samples / self.samples
        if "video" in self.modalities:
            frames = source.frames(frame_times(span, self.num_frames), self.frame_size)
            video = center_square(frames, self.frame_size)
        return Clip(audio, video, row.labels, index, row.clip_id, span.start, fraction, samples)

    def collate(self, items: Sequence[Item], allocate: Allocate = separate_tensors) -> Batch:
        """Flattens the items' clips to a :class:`Batch`; with no clip at all its tensors have B = 0.

        Args:
            items: What keys of this dataset gave.
            allocate: Makes the tensors of the batch; see :func:`~avssl.data.batch.tensors_in_one_buffer`.
        """
        clips = [clip for item in items for clip in item.clips]
        small = {
            "index": torch.tensor([clip.index for clip in clips], dtype=torch.int64),
            "start": torch.tensor([clip.start for clip in clips], dtype=torch.float64),
            "samples": torch.tensor([clip.samples for clip in clips], dtype=torch.int64),
        }
        labels = {head: self._labels([clip.labels for clip in clips], head) for head in self.manifest.heads}
        others: dict[str, Tensor] = {}
        if self.mixup is not None:
            small["mixed_share"] = torch.tensor([clip.share for clip in clips], dtype=torch.float32)
            theirs = [clip.labels if clip.mixed_labels is None else clip.mixed_labels for clip in clips]
            others = {head: self._labels(theirs, head) for head in self.manifest.heads}
        shapes = {
            "audio": ((self.samples,), torch.float32),
            # As they were decoded: a batch is put into another order by the device that computes with it.
            "video": ((self.num_frames, self.frame_size, self.frame_size, 3), torch.uint8),
        }
        wanted = [((len(clips), *shapes[name][0]), shapes[name][1]) for name in self.modalities]
        wanted += [(x.shape, x.dtype) for group in (small, labels, others) for x in group.values()]
        made = iter(allocate(wanted))
        large = {name: next(made) for name in self.modalities}
        for name, tensor in large.items():
            target = tensor.numpy()
            for k, clip in enumerate(clips):
                target[k] = getattr(clip, name)
        small, labels, others = (
            {name: next(made).copy_(x) for name, x in each.items()} for each in (small, labels, others)
        )
        video = large.get("video")
        return Batch(
            audio=large.get("audio"),
            video=None if video is None else video.permute(0, 4, 1, 2, 3),
            labels=labels,
            mixed_labels=others,
            clip_ids=[clip.clip_id for clip in clips],
            failures=[failure for item in items for failure in item.failures],
            missing=sum(not item.clips for item in items),
            rows=sum(item.rows for item in items),
            **small,
        )

    def _labels(self, rows: Sequence[Mapping[str, int | list[int] | None]], head: str) -> Tensor:
        """(B,) int64 classes, or (B, C) float32 zeros and ones of a multi-label head; -1 where unlabelled."""
        values = [row.get(head) for row in rows]
        if head not in self.manifest.multilabel:
            return torch.tensor([-1 if value is None else value for value in values], dtype=torch.int64)
        hot = torch.zeros(len(values), len(self.manifest.heads[head]))
        for row, value in zip(hot, values, strict=True):
            if value is None:
                row.fill_(-1)
            else:
                row[value] = 1
        return hot


def _blend(own: Clip, other: Clip, share: float) -> Clip:
    """``own`` blended with ``other``; see `avssl.data.mixup`."""
    audio, video = own.audio, own.video
    if audio is not None and other.audio is not None:
        audio = mix_waveforms(audio, own.samples, other.audio, other.samples, share)
    if video is not None and other.video is not None:
        video = mix_frames(video, other.video, share)
    return replace(own, audio=audio, video=video, share=share, mixed_labels=other.labels)


def _unwatched(index: int) -> None:
    """The watch of a dataset that decodes in the process that asks for its clips."""


def center_square(frames: np.ndarray, size: int) -> np.ndarray:
    """The centre (T, size, size, 3) of frames (T, H, W, 3) whose sides are at least ``size``."""
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    if top < 0 or left < 0:
        raise ValueError(f"frames of {frames.shape[2]}x{frames.shape[1]} hold no {size}x{size} square")
    return frames[:, top : top + size, left : left + size]
