"""Masked modelling of spectrograms and frames."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.augment import random_units, stretch_units
from avssl.models.fusion import POSITION_WIDTH, position_code
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import parse_modality


def draw_units(like: Tensor, share: float, unit: tuple[int, int]) -> Tensor:
    """Units to mask, (B, units along F, units along T) bool, of ``like`` (B, ..., F, T): the same number in every clip.

    Raises:
        ValueError: when ``share`` of the units rounds to none: there would be nothing to learn.
    """
    count = math.prod(math.ceil(size / step) for size, step in zip(like.shape[-2:], unit, strict=True))
    if not round(share * count):
        raise ValueError(f"masked: share of {share} masks none of {count} units; raise it above {0.5 / count:.3f}")
    return random_units(like, share, unit)


def normalized(units: Tensor, exists: Tensor) -> Tensor:
    """Each unit less its mean, over its standard deviation (He et al. 2022, MAE, section 3).

    Args:
        units: (B, ..., P) values of each unit.
        exists: 1 where a value is one of the input, 0 where it is padding; broadcasts to ``units``.
    """
    count = exists.sum(dim=-1, keepdim=True).clamp_min(1)
    mean = (units * exists).sum(dim=-1, keepdim=True) / count
    variance = ((units - mean).square() * exists).sum(dim=-1, keepdim=True) / count
    return (units - mean) / (variance + 1e-6).sqrt()


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor, exists: Tensor) -> Tensor:
    """Mean squared error over what is masked, for each clip (Xie et al. 2022, SimMIM, eq. 2, with squares).

    Args:
        prediction: (B, ..., P).
        target: (B, ..., P) float32 or better: what the error is computed in.
        mask: (B, ...) bool, which units are masked.
        exists: As in :func:`normalized`.

    Returns:
        (B, 3): the error, the error of always predicting the mean of the clip's masked targets (detached; a yardstick),
        and the share of the units that is masked.
    """
    weight = mask[..., None] * exists
    within = tuple(range(1, target.ndim))
    count = weight.sum(dim=within).clamp_min(1)
    error = ((prediction.to(target.dtype) - target).square() * weight).sum(dim=within) / count
    with torch.no_grad():
        mean = ((target * weight).sum(dim=within) / count).view(-1, *[1] * (target.ndim - 1))
        yardstick = ((target - mean).square() * weight).sum(dim=within) / count
    return torch.stack([error, yardstick, mask.flatten(1).to(error.dtype).mean(dim=1)], dim=1)


class AudioReconstruction(nn.Module):
    """Predicts masked units of a spectrogram from the encoder's tokens, by one linear layer.

    A unit is what one token of the coarsest stage covers, so no stage mixes masked and seen pixels within a token's own
    place (Hiera, Ryali et al. 2023). It is replaced in input space, by a learnable pattern: behind a patch embedding
    whose patches overlap, masked tokens would still hold pixels of their neighbours (SimMIM, Xie et al. 2022, masks
    behind one whose patches do not).

    Args:
        width: Channels of a token.
        unit: Mel bins and frames of a unit.
        share: Share of the units that is masked.
        normalize: Normalize each unit's target.
    """

    def __init__(self, width: int, unit: tuple[int, int], share: float, normalize: bool) -> None:
        super().__init__()
        self.unit, self.share, self.normalize = unit, share, normalize
        self.pattern = nn.Parameter(torch.zeros(unit))
        self.head = nn.Linear(width, unit[0] * unit[1])

    def no_weight_decay(self) -> set[str]:
        """The pattern is an input, not a weight."""
        return {"pattern"}

    def forward(self, encoder: nn.Module, spectrogram: Tensor) -> Tensor:
        """``spectrogram`` (b, 1, F, T) -> (b, 3), see :func:`~avssl.objectives.masked.masked_error`.

        ``encoder.forward_grid`` gives tokens (b, F', T', A). Where its grid is smaller than that of the units, as it
        may be at the upper and the right edge, units without a token have no error.
        """
        mask = draw_units(spectrogram, self.share, self.unit)
        seen = self._hide(spectrogram, mask)
        tokens = encoder.forward_grid(seen)  # type: ignore[operator]  # a SpectrogramModel
        rows, columns = min(tokens.shape[1], mask.shape[1]), min(tokens.shape[2], mask.shape[2])
        target = self._split(spectrogram)[:, :rows, :columns]
        exists = self._split(torch.ones_like(spectrogram[:1]))[:, :rows, :columns]
        if self.normalize:
            target = normalized(target, exists)
        return masked_error(self.head(tokens[:, :rows, :columns]), target, mask[:, :rows, :columns], exists)

    def _hide(self, spectrogram: Tensor, mask: Tensor) -> Tensor:
        """The pattern in place of masked units."""
        mels, frames = spectrogram.shape[-2:]
        pattern = self.pattern.repeat(mask.shape[1], mask.shape[2])[:mels, :frames]
        return torch.where(stretch_units(mask, self.unit, (mels, frames))[:, None], pattern, spectrogram)

    def _split(self, spectrogram: Tensor) -> Tensor:
        """(b, 1, F, T) -> units (b, f, t, P); those at the edges are filled up with zeros."""
        missing = [-size % step for size, step in zip(spectrogram.shape[-2:], self.unit, strict=True)]
        whole = F.pad(spectrogram[:, 0], (0, missing[1], 0, missing[0]))
        units = whole.unflatten(2, (-1, self.unit[1])).unflatten(1, (-1, self.unit[0]))
        return units.transpose(2, 3).flatten(3)


SIDE = 4  # pixels of a cube's target, along height and width


class VideoReconstruction(nn.Module):
    """Predicts masked cubes of the frames from the feature vector, by a small MLP that is told the cube's place.

    A masked cube has one learnable colour. Its target is the cube averaged to 1 frame of 4 x 4 pixels: a vector of
    the whole clip cannot hold more detail. Pixels and frames beyond the last whole cube are never masked.

    Args:
        width: Size V of the feature vector.
        share: Share of the cubes that is masked.
        normalize: Normalize each cube's target.
        cube: Frames, height and width of a cube. As many frames as the clip has make tubes, which still scenes need:
            there, a masked cube can be seen at another time.
        hidden: Width of the MLP.
    """

    def __init__(
        self, width: int, share: float, normalize: bool, cube: Sequence[int] = (2, 16, 16), hidden: int = 256
    ) -> None:
        super().__init__()
        if len(cube) != 3 or min(cube) < 1 or cube[1] % SIDE or cube[2] % SIDE:
            raise ValueError(
                f"masked: cube must be at least 1 frame, and a height and a width that are multiples of {SIDE}, "
                f"got {list(cube)}"
            )
        if hidden < 1:
            raise ValueError(f"masked: hidden must be at least 1, got {hidden}")
        self.cube, self.share, self.normalize = tuple(cube), share, normalize
        self.color = nn.Parameter(torch.full((3, 1, 1, 1), 0.5))
        self.feature = nn.Linear(width, hidden)
        self.place = nn.Linear(3 * POSITION_WIDTH, hidden, bias=False)
        self.decode = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 3 * SIDE * SIDE))

    def no_weight_decay(self) -> set[str]:
        """The colour is an input, not a weight."""
        return {"color"}

    def forward(self, encoder: nn.Module, frames: Tensor) -> Tensor:
        """``frames`` (b, 3, T, H, W) in [0, 1] -> (b, 3), see :func:`~avssl.objectives.masked.masked_error`.

        Raises:
            ValueError: when the frames hold no whole cube.
        """
        grid = tuple(size // side for size, side in zip(frames.shape[2:], self.cube, strict=True))
        if not all(grid):
            raise ValueError(f"masked: cube {list(self.cube)} is larger than the clip of {list(frames.shape[2:])}")
        frames = frames.to(torch.promote_types(frames.dtype, self.color.dtype))
        flat = draw_units(frames.new_empty(len(frames), grid[0] * grid[1], grid[2]), self.share, (1, 1))
        mask = flat.unflatten(1, grid[:2])
        features = self.feature(encoder(torch.where(self._pixels(mask, frames), self.color, frames)))
        places = self.place(position_code(grid, frames))
        prediction = self.decode(features[:, None, None, None] + places)
        target = self._targets(frames, grid)
        exists = torch.ones_like(target[:1])
        if self.normalize:
            target = normalized(target, exists)
        return masked_error(prediction, target, mask, exists)

    def _pixels(self, mask: Tensor, frames: Tensor) -> Tensor:
        """Cubes (b, t, h, w) -> the pixels that they cover (b, 1, T, H, W)."""
        for axis, side in enumerate(self.cube, start=1):
            mask = mask.repeat_interleave(side, dim=axis)
        beyond = [(0, size - covered) for size, covered in zip(frames.shape[:1:-1], mask.shape[:0:-1], strict=True)]
        return F.pad(mask, [count for pair in beyond for count in pair])[:, None]

    def _targets(self, frames: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(b, 3, T, H, W) -> averaged cubes (b, t, h, w, 3 * 4 * 4), the channel being the slowest index."""
        step = (self.cube[0], self.cube[1] // SIDE, self.cube[2] // SIDE)
        small = F.avg_pool3d(frames, step)[:, :, : grid[0], : grid[1] * SIDE, : grid[2] * SIDE]
        cubes = small.unflatten(4, (grid[2], SIDE)).unflatten(3, (grid[1], SIDE))  # (b, 3, t, h, 4, w, 4)
        return cubes.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)


@register_objective("masked")
class Masked(Objective):
    """Masked modelling: predicts hidden parts of the spectrogram, of the frames, or of both.

    The input is masked before the encoder, which keeps its full grid (SimMIM, Xie et al. 2022), since a hierarchical
    encoder cannot leave tokens out. With ``infonce`` as a second term it is the objective of CAV-MAE (Gong et al.
    2023); masked inputs are encoded apart, so the contrast sees whole ones.

    Args:
        shapes: Sizes of the features, and of a unit of the spectrogram.
        modality: What is masked and predicted: audio, video, or both, whose losses are added. Two terms of one modality
            each can have shares and weights of their own.
        share: Share of the units, or cubes, that is masked in each clip.
        normalize: Normalize the target of each unit or cube.
        cube, hidden: For video: see :class:`~avssl.objectives.masked.VideoReconstruction`.
    """

    projection = None

    def __init__(
        self, shapes: Shapes, modality: str = "audio", share: float = 0.6, normalize: bool = True, **video_options: Any
    ) -> None:
        super().__init__()
        modalities = parse_modality("masked", modality)
        if not 0 < share <= 1:
            raise ValueError(f"masked: share must lie in (0, 1], got {share}")
        self.audio = self.video = None
        if "audio" in modalities:
            self.audio = AudioReconstruction(shapes.audio, shapes.audio_stride, share, normalize)
        if "video" in modalities:
            self.video = VideoReconstruction(shapes.video, share, normalize, **video_options)
        elif video_options:
            raise ValueError(f"masked: modality audio has no option {', '.join(video_options)}")

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Masked":
        """See the class."""
        return cls(shapes, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the clips.

        The report has, by modality, the loss, the loss of always predicting the mean of a clip's masked targets (about
        1 where these are normalized), and the share that is masked.
        """
        parts = {}
        if self.audio is not None:
            parts["audio"] = step.map_audio(self.audio).mean(dim=0)
        if self.video is not None:
            parts["video"] = step.map_video(self.video).mean(dim=0)
        report = {
            f"{modality}_{name}": value
            for modality, part in parts.items()
            for name, value in zip(("loss", "loss_of_mean", "share"), part.detach(), strict=True)
        }
        return torch.stack([part[0] for part in parts.values()]).sum(), report
