"""Steps and tasks small enough to compare with references: fixed embeddings, and a pair without batch statistics."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.data.batch import Batch
from avssl.models import AudioVisualPair
from avssl.models.projection import Projection
from avssl.models.video import FeatureMap, VideoEncoder
from avssl.objectives import Objective, Shapes, Step, projections_of
from avssl.training.pretraining import PretrainTask

SHAPES = Shapes(joint=6, audio=64, video=10, clips=16, audio_stride=(32, 32))


class FixedStep(Step):
    """Embeddings given by the test: ``audio`` and ``video`` are lists by view, or one tensor that all views share."""

    def __init__(self, audio, video, teacher_audio=None, teacher_video=None, index=None, labels=None, start=None):
        self._given = {(False, "audio"): audio, (False, "video"): video}
        self._given |= {(True, "audio"): teacher_audio, (True, "video"): teacher_video}
        size = len(audio[0]) if isinstance(audio, list) else len(audio)
        self.index = torch.arange(size) if index is None else index
        self.file = self.index
        self.labels = labels or {}
        self.start = torch.zeros(size, dtype=torch.float64) if start is None else start
        self.seconds = 1.0

    def _get(self, teacher: bool, modality: str, view: int) -> Tensor:
        given = self._given[teacher, modality]
        return given[view] if isinstance(given, list) else given

    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Tensor:
        return self._get(teacher, "audio", view)

    def video(self, view: int = 0, *, teacher: bool = False) -> Tensor:
        return self._get(teacher, "video", view)

    def project(
        self, objective: Objective, modality: str, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0
    ) -> Tensor:
        if modality == "audio":
            return self.audio(view, teacher=teacher, patch_drop=patch_drop)
        return self.video(view, teacher=teacher)

    def head(self, objective: Objective, modality: str, *, teacher: bool = False) -> nn.Module:
        return nn.Identity()

    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        raise NotImplementedError("a fixed step has no encoder")

    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        raise NotImplementedError("a fixed step has no encoder")


class Grid(nn.Module):
    """An encoder that gives the tokens that it was made with, and keeps the inputs that it was shown."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs, self.shown = list(outputs), []

    def forward_grid(self, x: Tensor, *, time: bool = True, space: bool = True) -> Tensor:
        self.shown.append(x.detach())
        grid = self.outputs[(len(self.shown) - 1) % len(self.outputs)]
        grid = grid if time else grid.mean(dim=1, keepdim=True)
        return grid if space else grid.mean(dim=(2, 3), keepdim=True)


class GridStep(FixedStep):
    """Tokens given by the test: the audio's (B, F', T', A), by pass, and the video's (B, T', H', W', V)."""

    def __init__(self, audio: Grid, video: Tensor | None = None, spectrogram: Tensor | None = None, **options) -> None:
        sounds = audio.outputs[0].mean(dim=(1, 2))
        super().__init__(sounds, sounds if video is None else video.mean(dim=(1, 2, 3)), **options)
        self.heard, self.spectrogram = audio, torch.zeros(len(sounds)) if spectrogram is None else spectrogram
        self.seen = None if video is None else Grid(video)

    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        return function(self.heard, self.spectrogram)

    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        return function(self.seen, torch.zeros(len(self.index)))


class PassingLogMel(mast.LogMel):
    """The frontend computes in float32, always; this one hands on what it was given."""

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        return super().forward(waveform.float(), samples).to(waveform.dtype)


def exact_task(
    objectives: list[tuple[str, Objective, float]], chunk: int | None = None, teacher_momentum: float | None = None
) -> PretrainTask:
    """A pretraining task in float64 whose clips do not depend on each other: no batch norm, no random augmentation.

    Its sizes are ``SHAPES``. Batches come from :func:`exact_batch`.
    """
    torch.manual_seed(0)
    options = {"embed_dim": 8, "depths": [1, 1, 1, 1], "drop_path": 0.0}
    audio = mast.create_model("mast_pico", **options)
    # mast_pico at this width has 64 features; the video encoder is a linear map of the mean frame.
    backbone = nn.Sequential(nn.AdaptiveAvgPool3d((2, 4, 4)), nn.Flatten(), nn.Linear(96, SHAPES.video), nn.Tanh())
    # Its pooling repeats a single cell, which is thus a clip of that cell alone.
    grid = FeatureMap("0", 3, fine="0", rest=lambda whole, cells: whole(cells))
    video = VideoEncoder("linear", backbone, SHAPES.video, grid)
    for name, objective, _ in objectives:
        if objective.projection is not None and objective.projected_by is None:  # built by its class
            objective.projected_by, objective.projection = name, Projection(dim=SHAPES.joint)
    pair = AudioVisualPair(audio, PassingLogMel(num_mels=64), video, projections_of(objectives))
    torch.manual_seed(1)
    for heads in pair.projections.values():
        heads["audio"], heads["video"] = (nn.Linear(width, SHAPES.joint) for width in (SHAPES.audio, SHAPES.video))
    pair.settings = {"crop_size": 16}
    task = PretrainTask(
        pair,
        objectives,
        wave=WaveAugment(gain_db=0.0),
        spectrogram=SpectrogramAugment(),
        video=VideoAugment(16, crop_scale=1.0, flip=0.0, color=0.0),
        chunk=chunk,
        teacher_momentum=teacher_momentum,
    ).double()
    pair.frontend = PassingLogMel(num_mels=64)
    return task


def exact_batch(size: int = 8, seed: int = 1) -> Batch:
    """Noise clips with labels of a head "event" and two clips of every row of the manifest."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        audio=torch.randn(size, 6000, generator=generator, dtype=torch.float64),
        video=torch.randint(0, 256, (size, 3, 4, 16, 16), generator=generator, dtype=torch.uint8),
        labels={"event": torch.arange(size) % 3},
        index=torch.arange(size) // 2,
        clip_ids=[str(i) for i in range(size)],
        start=torch.arange(size, dtype=torch.float64) % 2,
    )


def start_processes(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Runs ``function(rank, *arguments)`` in ``count`` processes, which fork from one that has the imports."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["avssl.training.pretraining", "torch.distributed.fsdp"]
    )
    mp.start_processes(function, arguments, nprocs=count, start_method="forkserver")
