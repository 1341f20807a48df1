"""Video encoders behind one interface: frames (B, 3, T, H, W) in [0, 1] -> features (B, D)."""

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import video as zoo
from torchvision.ops import StochasticDepth

from avssl.models.mvit import FusedAttention
from avssl.progress import Meter
from mast.layers import AddBranch

# Channel statistics that torchvision's Kinetics-400 weights were trained with.
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)


def _channels_first(output: Tensor) -> Tensor:
    return output.movedim(1, -1)


def _channels_last(output: Tensor) -> Tensor:
    return output


def _mvit_tokens(output: Tensor) -> Tensor:
    return output[:, 1:].unflatten(1, (8, 7, 7))  # behind the class token; 16 frames of 224 x 224 become these places


@dataclass(frozen=True)
class FeatureMap:
    """Where a backbone has its features still on their grid of time, height and width.

    Attributes:
        layer: Name of the submodule whose output is read.
        width: Channels C.
        arrange: That output -> (B, T', H', W', C).
    """

    layer: str
    width: int
    arrange: Callable[[Tensor], Tensor] = _channels_first


class VideoEncoder(nn.Module):
    """A backbone without its classifier, with the channel normalization that it was trained with.

    Args:
        name: Registered name.
        backbone: Module, normalized frames (B, 3, T, H, W) -> features (B, ``num_features``).
        num_features: Width D of the features.
        feature_map: Where :meth:`forward_map` reads; None: the backbone has no map.
        mean: Channel means subtracted from frames in [0, 1].
        std: Channel standard deviations divided by.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        num_features: int,
        feature_map: FeatureMap | None = None,
        mean: tuple[float, float, float] = KINETICS_MEAN,
        std: tuple[float, float, float] = KINETICS_STD,
    ) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone
        self.num_features = num_features
        self.feature_map = feature_map
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Features (B, D) of ``frames``: (B, 3, T, H, W) float in [0, 1]."""
        return self.backbone((frames - self.mean) / self.std)

    def forward_map(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, D) of ``frames`` (B, 3, T, H, W), and the map (B, T', H', W', C) that they are pooled from.

        Raises:
            ValueError: when the backbone has no map.
        """
        if self.feature_map is None:
            raise ValueError(f"video encoder {self.name!r} has no map of features")
        maps: list[Tensor] = []
        layer = self.backbone.get_submodule(self.feature_map.layer)
        handle = layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            features = self(frames)
        finally:
            handle.remove()
        return features, self.feature_map.arrange(maps[0])


Builder = Callable[[int, int, bool], tuple[nn.Module, int, FeatureMap]]
_BUILDERS: dict[str, Builder] = {}
_SIZES: dict[str, tuple[int, int]] = {}


def _register(num_frames: int, frame_size: int) -> Callable[[Builder], Builder]:
    """Registers an encoder with the frames of a clip, and their side, that it was made for."""

    def register(builder: Builder) -> Builder:
        _BUILDERS[builder.__name__] = builder
        _SIZES[builder.__name__] = (num_frames, frame_size)
        return builder

    return register


def list_video_encoders() -> list[str]:
    """Names that :func:`create_video_encoder` takes."""
    return sorted(_BUILDERS)


def own_size(name: str) -> tuple[int, int]:
    """Frames of a clip, and their height and width, that the video encoder ``name`` was made for.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _SIZES:
        near = difflib.get_close_matches(name, _SIZES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"video.model: unknown video encoder {name!r}.{hint} Known: {', '.join(list_video_encoders())}"
        )
    return _SIZES[name]


def create_video_encoder(
    name: str, *, num_frames: int | None = None, frame_size: int | None = None, pretrained: bool = False
) -> VideoEncoder:
    """Builds the video encoder ``name``.

    Args:
        name: tiny, tiny_motion, mvit_v2_s, r2plus1d_18, swin3d_t or s3d.
        num_frames: Frames T of a clip; mvit_v2_s takes 16 only; None: :func:`own_size`.
        frame_size: Height and width of the frames; mvit_v2_s takes 224 only; None: :func:`own_size`.
        pretrained: Load torchvision's Kinetics-400 weights.

    Raises:
        ValueError: for an unknown name, or weights that do not exist or do not fit.
        OSError: when the weights cannot be downloaded.
    """
    frames, side = own_size(name)
    num_frames, frame_size = num_frames or frames, frame_size or side
    try:
        backbone, num_features, feature_map = _BUILDERS[name](num_frames, frame_size, pretrained)
    except URLError as error:
        raise OSError(
            f"video.pretrained: the Kinetics weights of {name} cannot be downloaded ({error.reason}); "
            "put them into torch's hub cache (TORCH_HOME) or set video.pretrained to false"
        ) from error
    return VideoEncoder(name, backbone, num_features, feature_map)


class DropPath(AddBranch):
    """torchvision's StochasticDepth of samples, but such that equal blocks share compiled code at any rate."""

    def forward(self, branch: Tensor) -> Tensor:  # type: ignore[override]
        """(B, ...) -> the same, in training without the branches that are dropped."""
        shares = self.shares(branch)
        return branch if shares is None else branch * shares


def _share_code(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, StochasticDepth) and child.mode == "row":
                setattr(module, name, DropPath(child.p))


def _trained(weights: Any) -> dict[str, Tensor]:
    """The state of ``weights``, downloaded where it is not kept; torch's own bar would fill a log file."""
    terminal = sys.stderr.isatty()
    with Meter(f"getting the weights {weights}", shown=not terminal):
        return dict(weights.get_state_dict(progress=terminal, check_hash=True))


def _headless(
    model: Any, weights: Any, head: str, layer: str, arrange: Callable[[Tensor], Tensor] = _channels_first
) -> tuple[nn.Module, int, FeatureMap]:
    """Loads ``weights`` into ``model``, takes away its ``head``, dropout included; its map comes out of ``layer``."""
    if weights is not None:
        model.load_state_dict(_trained(weights))
    _share_code(model)
    width = next(part.in_features for part in getattr(model, head).modules() if isinstance(part, nn.Linear))
    setattr(model, head, nn.Identity())
    return model, width, FeatureMap(layer, width, arrange)


@_register(16, 224)
def mvit_v2_s(num_frames: int, frame_size: int, pretrained: bool) -> tuple[nn.Module, int, FeatureMap]:
    if (num_frames, frame_size) != (16, 224):  # torchvision fixes the sizes of its relative position tables
        raise ValueError(
            f"video.model: mvit_v2_s takes 16 frames of 224 x 224, not {num_frames} of {frame_size} x {frame_size}: "
            "set data.num_frames to 16 and video.crop_size to 224"
        )
    weights = zoo.MViT_V2_S_Weights.KINETICS400_V1 if pretrained else None
    model = zoo.mvit_v2_s()
    for block in model.blocks:
        block.attn = FusedAttention(block.attn)
    return _headless(model, weights, "head", "norm", _mvit_tokens)


@_register(16, 112)
def r2plus1d_18(num_frames: int, frame_size: int, pretrained: bool) -> tuple[nn.Module, int, FeatureMap]:
    weights = zoo.R2Plus1D_18_Weights.KINETICS400_V1 if pretrained else None
    return _headless(zoo.r2plus1d_18(), weights, "fc", "layer4")


@_register(16, 224)
def swin3d_t(num_frames: int, frame_size: int, pretrained: bool) -> tuple[nn.Module, int, FeatureMap]:
    weights = zoo.Swin3D_T_Weights.KINETICS400_V1 if pretrained else None
    return _headless(zoo.swin3d_t(), weights, "head", "norm", _channels_last)


class _S3D(nn.Module):
    """torchvision's S3D features, averaged over time and space; its own average pool fits 224-pixel frames only."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, frames: Tensor) -> Tensor:
        return self.features(frames).mean(dim=(2, 3, 4))


@_register(16, 224)
def s3d(num_frames: int, frame_size: int, pretrained: bool) -> tuple[nn.Module, int, FeatureMap]:
    model = zoo.s3d()
    if pretrained:
        model.load_state_dict(_trained(zoo.S3D_Weights.KINETICS400_V1))
    return _S3D(model.features), 1024, FeatureMap("features", 1024)


class SmallBlock(nn.Module):
    """Residual (2+1)D block (Tran et al. 2018): spatial then temporal convolution, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv3d(outputs, outputs, (3, 1, 1), 1, (1, 0, 0), bias=False),
            nn.BatchNorm3d(outputs),
        )
        self.skip = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.body(x))


class _Motion(nn.Module):
    """Appends each pixel's departure from its mean over the clip, amplified: (B, 3, T, H, W) -> (B, 6, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 3 * (x - x.mean(dim=2, keepdim=True))], dim=1)


@_register(8, 48)
def tiny(num_frames: int, frame_size: int, pretrained: bool) -> tuple[nn.Module, int, FeatureMap]:
    """A small (2+1)D ResNet for CPUs. It keeps the frames' order and places to the end: they tell timing and pitch."""
    _no_weights("tiny", pretrained)
    return _small_resnet(nn.Identity(), channels=3, width=16)


@_register(8, 48)
def tiny_motion(num_frames: int, frame_size: int, pretrained: bool) -> tuple[nn.Module, int, FeatureMap]:
    """A wider ``tiny`` that sees motion apart from what stands still: for still cameras and slight motion (lips)."""
    _no_weights("tiny_motion", pretrained)
    return _small_resnet(_Motion(), channels=6, width=24)


def _no_weights(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ValueError(f"video.pretrained: there are no Kinetics weights for video.model {name}")


def _small_resnet(first: nn.Module, channels: int, width: int) -> tuple[nn.Module, int, FeatureMap]:
    backbone = nn.Sequential(
        first,
        nn.Conv3d(channels, width, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
        SmallBlock(width, 2 * width, 2),
        SmallBlock(2 * width, 4 * width, 2),
        SmallBlock(4 * width, 8 * width, 2),
        nn.AdaptiveAvgPool3d((8, 2, 2)),  # layer 7, whose output is the map
        nn.Flatten(),
        nn.Linear(8 * width * 32, 256),
    )
    # In this layout the convolutions take a quarter less time on a CPU.
    backbone.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # an overload that its types omit
    return backbone, 256, FeatureMap("7", 8 * width)
