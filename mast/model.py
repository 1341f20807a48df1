"""MAST: a hierarchical spectrogram transformer that pools along time, and along time and frequency, stage by stage."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mast.attention import NORM_EPS, Block, pooled
from mast.base import SpectrogramModel
from mast.layers import PatchEmbed, check_spectrogram, init_weights, stochastic_depth_rule
from mast.relative import Grid


def pairs(name: str, values: Sequence[Sequence[int]], count: int) -> list[Grid]:
    """Check a list of (frequency, time) pairs; ValueError names the argument."""
    checked = [tuple(int(v) for v in value) for value in values]
    if len(checked) != count or any(len(pair) != 2 or min(pair) < 1 for pair in checked):
        raise ValueError(f"{name}: expected {count} pairs of positive (frequency, time) integers, got {values}")
    return checked  # type: ignore[return-value]


class MAST(SpectrogramModel):
    """Multiscale Audio Spectrogram Transformer.

    Patch embedding, then stages of pooling attention. Each stage after the first doubles channels and heads and shrinks
    the grid with its first block's queries; keys and values are pooled in every block. No class token, no absolute
    positions: relative positions along frequency and time in every attention. LayerNorm, mean over tokens, linear head.

    Any number of mels and frames works, also at inference only; ``mels`` and ``frames`` are the reference size, which
    sets the length of the relative-position tables.

    Args:
        num_classes: width of the head; 0 means no head, and the model returns features.
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        heads: attention heads of the first stage.
        q_strides: pooling of queries in (frequency, time) on entry to each stage; the first must be (1, 1).
        kv_strides: pooling of keys and values in (frequency, time) in each block of a stage, relative to its input.
        patch_size, patch_stride, patch_padding: of the patch embedding, in (mels, frames).
        mlp_ratio: hidden width of the MLPs in units of their input.
        drop_path: stochastic depth of the last block; it rises linearly from 0.
        scaled_positions: divide the scores of relative positions by sqrt(dim) with those of the content, as MViTv2's
            equation 4 is printed; False divides the content alone, as its authors' code (SlowFast) does.
        mels, frames: reference input size.
        mask_padding: ``features`` leaves tokens out of the mean that begin behind the sound of their clip, where it is
            told how many frames have sound.

    Examples:
        >>> import torch, mast
        >>> model = mast.create_model("mast_pico", num_classes=10)
        >>> model(torch.zeros(2, 1, 128, 100)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        num_classes: int = 0,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 3, 16, 3),
        heads: int = 1,
        q_strides: Sequence[Sequence[int]] = ((1, 1), (2, 2), (1, 2), (2, 2)),
        kv_strides: Sequence[Sequence[int]] = ((2, 4), (1, 2), (1, 1), (1, 1)),
        patch_size: Sequence[int] = (16, 16),
        patch_stride: Sequence[int] = (8, 4),
        patch_padding: Sequence[int] = (4, 6),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        scaled_positions: bool = True,
        mels: int = 128,
        frames: int = 1024,
        mask_padding: bool = False,
    ) -> None:
        if not depths or min(depths) < 1:
            raise ValueError(f"depths: expected a positive number of blocks for each stage, got {list(depths)}")
        if embed_dim < 1 or heads < 1 or embed_dim % heads:
            raise ValueError(f"embed_dim={embed_dim} must be a positive multiple of heads={heads}")
        if mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={mlp_ratio} must be positive")
        if len(patch_padding) != 2 or min(patch_padding) < 0:
            raise ValueError(f"patch_padding: expected two integers from 0, got {list(patch_padding)}")
        size, stride = pairs("patch_size, patch_stride", (patch_size, patch_stride), 2)
        q_steps = pairs("q_strides", q_strides, len(depths))
        kv_steps = pairs("kv_strides", kv_strides, len(depths))
        if q_steps[0] != (1, 1):
            raise ValueError(f"q_strides: the first stage keeps the patch grid, got {q_steps[0]} instead of (1, 1)")

        config = {
            "num_classes": num_classes,
            "embed_dim": embed_dim,
            "depths": [int(depth) for depth in depths],
            "heads": heads,
            "q_strides": [list(step) for step in q_steps],
            "kv_strides": [list(step) for step in kv_steps],
            "patch_size": list(size),
            "patch_stride": list(stride),
            "patch_padding": [int(p) for p in patch_padding],
            "mlp_ratio": mlp_ratio,
            "drop_path": drop_path,
            "scaled_positions": bool(scaled_positions),
            "mels": mels,
            "frames": frames,
            "mask_padding": mask_padding,
        }
        super().__init__(config, num_features=embed_dim * 2 ** (len(depths) - 1))
        self.patch_embed = PatchEmbed(embed_dim, size, stride, (int(patch_padding[0]), int(patch_padding[1])))
        grid = self.patch_embed.grid(mels, frames)
        rates = iter(stochastic_depth_rule(drop_path, sum(depths)))
        dim = embed_dim
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            width = embed_dim * 2**stage
            blocks = []
            for index in range(depth):
                step = q_steps[stage] if index == 0 else (1, 1)
                block = (dim, width, heads * 2**stage, grid, step, kv_steps[stage], mlp_ratio, next(rates))
                blocks.append(Block(*block, scaled_positions=scaled_positions))
                dim, grid = width, pooled(grid, step)
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS)
        self.apply(init_weights)
        self.reset_classifier(num_classes)

    @property
    def num_layers(self) -> int:
        """The layer of the final norm and the head: one more than there are blocks."""
        return sum(self.config["depths"]) + 1

    def layer_of(self, name: str) -> int:
        """0 for the patch embedding, then the blocks over all stages, then the norm and the head."""
        part, *rest = name.split(".")
        if part == "stages":
            return sum(self.config["depths"][: int(rest[0])]) + int(rest[1]) + 1
        return 0 if part == "patch_embed" else self.num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: biases, norms, relative positions."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2 or name.endswith(".table")}

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens after the final norm (B, N, num_features), time the faster index."""
        return self.forward_grid(x).flatten(1, 2)

    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> the same tokens on their grid of frequency and time (B, F', T', num_features)."""
        check_spectrogram(x, self.name or type(self).__name__)
        x = self.patch_embed(x)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    @property
    def stride(self) -> tuple[int, int]:
        """Mel bins and frames between neighbouring tokens of ``forward_grid``."""
        steps = [self.config["patch_stride"], *self.config["q_strides"]]
        return math.prod(step[0] for step in steps), math.prod(step[1] for step in steps)

    def features(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """See ``SpectrogramModel.features``."""
        if frames is None or not self.config["mask_padding"]:
            return super().features(x)
        by_time = self.forward_grid(x).mean(dim=1)  # (B, T', num_features)
        last = torch.div(frames - 1, self.stride[1], rounding_mode="floor")  # token that begins last within the sound
        kept = (torch.arange(by_time.shape[1], device=x.device) <= last[:, None]).to(by_time.dtype)[..., None]
        return (by_time * kept).sum(dim=1) / kept.sum(dim=1)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, num_features) -> logits (B, num_classes), or their mean (B, num_features)."""
        features = tokens.mean(dim=1)
        return features if pre_logits else self.head(features)
