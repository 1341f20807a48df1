"""Video encoders behind one interface: frames (B, 3, T, H, W) in [0, 1] -> features (B, D)."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import le
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from avssl.plugins import Registry
from avssl.progress import Meter
from mast.fast import accelerate, default_backend

Statistics = tuple[float, float, float]

# Channel statistics of Kinetics-400: of encoders without weights of their own, and of all checkpoints of before they
# were kept in them.
KINETICS_MEAN: Statistics = (0.43216, 0.394666, 0.37645)
KINETICS_STD: Statistics = (0.22803, 0.22145, 0.216989)


def channels_first(output: Tensor) -> Tensor:
    return output.movedim(1, -1)


@dataclass(frozen=True)
class FeatureMap:
    """Where a backbone has its features still on their grid of time, height and width.

    Attributes:
        layer: Name of the submodule whose output is read.
        width: Channels C.
        arrange: That output -> (B, T', H', W', C).
        fine: Name of a submodule in front of ``layer`` with a finer grid, (B, C, T', H', W'); for a backbone that does
            not end in a mean over its map.
        rest: The backbone behind ``fine``, for inputs of any size: such an output -> (B, D).
    """

    layer: str
    width: int
    arrange: Callable[[Tensor], Tensor] = channels_first
    fine: str | None = None
    rest: Callable[[nn.Module, Tensor], Tensor] | None = None


class VideoEncoder(nn.Module):
    """A backbone without its classifier, with the channel normalization that it was trained with.

    The statistics are part of the ``state_dict``. One without them was written when all encoders had Kinetics', and
    brings those.

    Args:
        name: Registered name.
        backbone: Module, normalized frames (B, 3, T, H, W) -> features (B, ``num_features``).
        num_features: Width D of the features.
        feature_map: Where :meth:`forward_map` reads; None: the backbone has no map.
        mean: Channel means subtracted from frames in [0, 1].
        std: Channel standard deviations divided by.
        options: Keyword arguments of :func:`create_video_encoder` beyond the sizes, to build it again.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        num_features: int,
        feature_map: FeatureMap | None = None,
        mean: Statistics = KINETICS_MEAN,
        std: Statistics = KINETICS_STD,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.backbone = _exact_convolutions(backbone)
        self.num_features = num_features
        self.feature_map = feature_map
        self.options = dict(options or {})
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _by_channel(mean))
        self.register_buffer("std", _by_channel(std))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:  # type: ignore[override]
        state_dict.setdefault(f"{prefix}mean", _by_channel(KINETICS_MEAN))
        state_dict.setdefault(f"{prefix}std", _by_channel(KINETICS_STD))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, frames: Tensor) -> Tensor:
        """Features (B, D) of ``frames``: (B, 3, T, H, W) float in [0, 1]."""
        return self.backbone((frames - self.mean) / self.std)

    def forward_map(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, D) of ``frames`` (B, 3, T, H, W), and the map (B, T', H', W', C) that they are pooled from.

        Raises:
            ValueError: when the backbone has no map.
        """
        features, output = self._read(self._map.layer, frames)
        return features, self._map.arrange(output)

    def forward_grid(self, frames: Tensor, *, time: bool = True, space: bool = True) -> Tensor:
        """Tokens (B, T', H', W', D) of ``frames`` (B, 3, T, H, W), of the width of the features.

        A token is the feature vector of a clip that shows everywhere and always what is at its place and time.
        Where features are the mean of a map, tokens are its cells. ``mvit_v2_s``, whose features are a class token,
        gives its patch tokens.

        Args:
            time: False pools time as the features do: T' is 1, and each place keeps its course in time.
            space: False pools height and width: H' and W' are 1.

        Raises:
            ValueError: when the backbone has no map.
        """
        where = self._map
        if where.fine is None or where.rest is None:
            pooled = [axis for axis, kept in ((1, time), (2, space), (3, space)) if not kept]
            _, output = self._read(where.layer, frames)
            grid = where.arrange(output)
            return grid.mean(dim=pooled, keepdim=True) if pooled else grid
        _, output = self._read(where.fine, frames)
        cells = output.movedim(1, -1)  # (B, T', H', W', C)
        axes = [axis for axis, kept in ((1, time), (2, space), (3, space)) if kept]
        size = [cells.shape[axis] if axis in axes else 1 for axis in (1, 2, 3)]
        inner = [1 if axis in axes else cells.shape[axis] for axis in (1, 2, 3)]
        parts = (
            cells.unflatten(3, (size[2], inner[2])).unflatten(2, (size[1], inner[1])).unflatten(1, (size[0], inner[0]))
        )
        rows = parts.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(0, 3)  # (B * T' * H' * W', C, t, h, w)
        return where.rest(self.backbone, rows).unflatten(0, (len(frames), *size))

    @property
    def _map(self) -> FeatureMap:
        if self.feature_map is None:
            raise ValueError(f"video encoder {self.name!r} has no map of features")
        return self.feature_map

    def _read(self, layer: str, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The features of ``frames``, and the output of a submodule on the way to them."""
        outputs: list[Tensor] = []
        handle = self.backbone.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output: outputs.append(output)
        )
        try:
            features = self(frames)
        finally:
            handle.remove()
        return features, outputs[0]


class _Conv3d(nn.Conv3d):
    """On a CPU in float32 where a clip is smaller than the kernel, in time or in space.

    There, torch 2.13 leaves parts of the gradient of the weights in bfloat16 unwritten, or writes beyond it: with 3
    frames of kernel upon 2 of the clip, as in the last stage of r2plus1d_18.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or all(map(le, self.kernel_size, x.shape[2:])):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


def _exact_convolutions(backbone: nn.Module) -> nn.Module:
    for module in backbone.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = _Conv3d
    return backbone


def _by_channel(statistics: Statistics) -> Tensor:
    return torch.tensor(statistics).view(1, 3, 1, 1, 1)


Built = tuple[nn.Module, int, FeatureMap | None]
Weights = dict[str, Tensor] | None
Builder = Callable[..., Built]


@dataclass(frozen=True)
class Registered:
    """A registered encoder; the fields are the arguments of :func:`register_video_encoder`."""

    build: Builder
    num_frames: int
    frame_size: int
    weights: WeightsEnum | Callable[[], dict[str, Tensor]] | None
    mean: Statistics
    std: Statistics

    @property
    def options(self) -> dict[str, Any]:
        """Its options, with their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def _import_built_in() -> None:
    import_module("avssl.models.backbones")


VIDEO_ENCODERS = Registry[Registered]("video.model", "video encoder", load=_import_built_in)


def register_video_encoder(
    name: str,
    *,
    num_frames: int,
    frame_size: int | None = None,
    weights: WeightsEnum | Callable[[], dict[str, Tensor]] | None = None,
    mean: Statistics | None = None,
    std: Statistics | None = None,
) -> Callable[[Builder], Builder]:
    """Makes ``builder(num_frames, frame_size, weights, **options)`` the video encoder ``name``.

    The builder returns the backbone, (B, 3, T, H, W) normalized -> (B, D), the width D, and where its features are
    still on a grid, or None. Its keyword-only arguments, each with a default, are ``video.options``.

    Args:
        name: What ``video.model`` takes.
        num_frames: Frames of a clip that it was made for.
        frame_size: Their height and width in pixels; None: that of torchvision's weights.
        weights: Of ``video.pretrained``: torchvision's, or a function that returns the ``state_dict`` that the builder
            is then given; None: there are none.
        mean: Channel means of the frames in [0, 1] that are subtracted; None: as torchvision's weights have them, else
            those of Kinetics-400.
        std: Channel deviations that are divided by; None: the same.

    Raises:
        ValueError: the name is taken, there is no size, or an option has no default.
    """
    transforms = weights.transforms() if isinstance(weights, WeightsEnum) else None
    side = int(transforms.crop_size[0]) if frame_size is None and transforms is not None else frame_size
    if side is None:
        raise ValueError(f"video encoder {name!r}: give frame_size, or weights of torchvision, which have one")
    mean = mean or (KINETICS_MEAN if transforms is None else tuple(transforms.mean))
    std = std or (KINETICS_STD if transforms is None else tuple(transforms.std))

    def register(builder: Builder) -> Builder:
        entry = Registered(builder, num_frames, side, weights, mean, std)
        if bare := [option for option, default in entry.options.items() if default is inspect.Parameter.empty]:
            raise ValueError(f"video encoder {name!r}: its option {bare[0]} has no default; give it one")
        VIDEO_ENCODERS.add(name, entry, builder)
        return builder

    return register


def list_video_encoders() -> list[str]:
    """Names that :func:`create_video_encoder` takes."""
    return sorted(VIDEO_ENCODERS.names())


def own_size(name: str) -> tuple[int, int]:
    """Frames of a clip, and their height and width, that the video encoder ``name`` was made for.

    Raises:
        ValueError: for an unknown name.
    """
    entry = VIDEO_ENCODERS.get(name)
    return entry.num_frames, entry.frame_size


def video_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the video encoder ``name``: its defaults, with what is ``given`` in their place.

    Raises:
        ValueError: for an option that it does not take, or a value of another type than that of the default.
    """
    known = VIDEO_ENCODERS.get(name).options
    for key, value in given.items():
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"video.options: {name} has no option {key!r}; {takes}")
        kinds = _types_like(known[key])
        if kinds and ((type(value) is bool) != (bool in kinds) or not isinstance(value, kinds)):
            must = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
            raise ValueError(f"video.options: {key} of {name} must be {must}, got {value!r}")
    return known | dict(given)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}


def _types_like(default: Any) -> tuple[type, ...]:
    """Types of the values that may stand in place of ``default``; none where it does not say."""
    if default is None:
        return ()
    if isinstance(default, list | tuple):
        return (list, tuple)
    return (float, int) if type(default) is float else (type(default),)


def create_video_encoder(
    name: str,
    *,
    num_frames: int | None = None,
    frame_size: int | None = None,
    pretrained: bool = False,
    **options: Any,
) -> VideoEncoder:
    """Builds the video encoder ``name``, with the channel statistics that it was registered with.

    Args:
        name: tiny, tiny_motion, mvit_v2_s, r2plus1d_18, swin3d_t, s3d, or one of a plug-in.
        num_frames: Frames T of a clip; mvit_v2_s takes 16 only; None: :func:`own_size`.
        frame_size: Height and width of the frames; mvit_v2_s takes 224 only; None: :func:`own_size`.
        pretrained: Load its weights, torchvision's on Kinetics-400 or its own.
        options: mvit_v2_s takes ``scaled_positions``, see :class:`avssl.models.mvit.FusedAttention`.

    What ``mast.set_backend`` chose holds for it, too: kernels for GPUs pool within MViTv2.

    Raises:
        ValueError: for an unknown name or option, or weights that do not exist or do not fit.
        OSError: when the weights cannot be downloaded.
    """
    entry = VIDEO_ENCODERS.get(name)
    video_options(name, options)
    if pretrained and entry.weights is None:
        raise ValueError(f"video.pretrained: there are no Kinetics weights for video.model {name}, nor others")
    frames, side = num_frames or entry.num_frames, frame_size or entry.frame_size
    try:
        weights = _trained(entry.weights) if pretrained else None
    except URLError as error:
        raise OSError(
            f"video.pretrained: the Kinetics weights of {name} cannot be downloaded ({error.reason}); "
            "put them into torch's hub cache (TORCH_HOME) or set video.pretrained to false"
        ) from error
    backbone, num_features, feature_map = entry.build(frames, side, weights, **options)
    encoder = VideoEncoder(name, backbone, num_features, feature_map, entry.mean, entry.std, options)
    return accelerate(encoder, default_backend())


def _trained(weights: Any) -> dict[str, Tensor]:
    """The state of ``weights``, downloaded where it is not kept; torch's own bar would fill a log file."""
    if not isinstance(weights, WeightsEnum):
        return dict(weights())
    terminal = sys.stderr.isatty()
    with Meter(f"getting the weights {weights}", shown=not terminal):
        return dict(weights.get_state_dict(progress=terminal, check_hash=True))
