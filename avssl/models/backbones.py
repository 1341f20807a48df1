"""The video encoders that come with the package: torchvision's of Kinetics-400, and two small ones for a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import video as zoo
from torchvision.ops import StochasticDepth

from avssl.models.mvit import FusedAttention, scale_positions
from avssl.models.video import Built, FeatureMap, Weights, channels_first, register_video_encoder
from mast.model import AddBranch


def _channels_last(output: Tensor) -> Tensor:
    return output


def _mvit_tokens(output: Tensor) -> Tensor:
    return output[:, 1:].unflatten(1, (8, 7, 7))  # behind the class token; 16 frames of 224 x 224 become these places


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


def _headless(
    model: Any, weights: Weights, head: str, layer: str, arrange: Callable[[Tensor], Tensor] = channels_first
) -> Built:
    """Loads ``weights`` into ``model``, takes away its ``head``, dropout included; its map comes out of ``layer``."""
    if weights is not None:
        model.load_state_dict(weights)
    _share_code(model)
    width = next(part.in_features for part in getattr(model, head).modules() if isinstance(part, nn.Linear))
    setattr(model, head, nn.Identity())
    return model, width, FeatureMap(layer, width, arrange)


@register_video_encoder("mvit_v2_s", num_frames=16, weights=zoo.MViT_V2_S_Weights.KINETICS400_V1)
def mvit_v2_s(num_frames: int, frame_size: int, weights: Weights, *, scaled_positions: bool = False) -> Built:
    if (num_frames, frame_size) != (16, 224):  # torchvision fixes the sizes of its relative position tables
        raise ValueError(
            f"video.model: mvit_v2_s takes 16 frames of 224 x 224, not {num_frames} of {frame_size} x {frame_size}: "
            "set data.num_frames to 16 and video.crop_size to 224"
        )
    model = zoo.mvit_v2_s()
    for block in model.blocks:
        block.attn = FusedAttention(block.attn, scaled_positions)
    if weights is not None and scaled_positions:
        weights = scale_positions(weights)
    return _headless(model, weights, "head", "norm", _mvit_tokens)


@register_video_encoder("r2plus1d_18", num_frames=16, weights=zoo.R2Plus1D_18_Weights.KINETICS400_V1)
def r2plus1d_18(num_frames: int, frame_size: int, weights: Weights) -> Built:
    return _headless(zoo.r2plus1d_18(), weights, "fc", "layer4")


@register_video_encoder("swin3d_t", num_frames=16, weights=zoo.Swin3D_T_Weights.KINETICS400_V1)
def swin3d_t(num_frames: int, frame_size: int, weights: Weights) -> Built:
    return _headless(zoo.swin3d_t(), weights, "head", "norm", _channels_last)


class _S3D(nn.Module):
    """torchvision's S3D features, averaged over time and space; its own average pool fits 224-pixel frames only."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, frames: Tensor) -> Tensor:
        return self.features(frames).mean(dim=(2, 3, 4))


@register_video_encoder("s3d", num_frames=16, weights=zoo.S3D_Weights.KINETICS400_V1)
def s3d(num_frames: int, frame_size: int, weights: Weights) -> Built:
    model = zoo.s3d()
    if weights is not None:
        model.load_state_dict(weights)
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


@register_video_encoder("tiny", num_frames=8, frame_size=48)
def tiny(num_frames: int, frame_size: int, weights: Weights) -> Built:
    """A small (2+1)D ResNet for CPUs. It keeps the frames' order and places to the end: they tell timing and pitch."""
    return _small_resnet(nn.Identity(), channels=3, width=16)


@register_video_encoder("tiny_motion", num_frames=8, frame_size=48)
def tiny_motion(num_frames: int, frame_size: int, weights: Weights) -> Built:
    """A wider ``tiny`` that sees motion apart from what stands still: for still cameras and slight motion (lips)."""
    return _small_resnet(_Motion(), channels=6, width=24)


def _small_end(backbone: nn.Module, cells: Tensor) -> Tensor:
    assert isinstance(backbone, nn.Sequential)
    return backbone[7:](cells)  # its pooling repeats what is smaller than 8 x 2 x 2


def _small_resnet(first: nn.Module, channels: int, width: int) -> Built:
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
    return backbone, 256, FeatureMap("7", 8 * width, fine="6", rest=_small_end)
