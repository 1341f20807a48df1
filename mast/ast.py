"""AST (Gong et al. 2021): the plain spectrogram transformer that MAST is compared with.

A DeiT with two special tokens on 16x16 patches at stride 10. ``mast.from_pretrained`` also reads the folder of a
published one, see ``mast.hugging_face``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast.base import SpectrogramModel, check_spectrogram, init_weights
from mast.model import AddBranch, Mlp, PatchEmbed, stochastic_depth_rule
from mast.registry import register_model

NORM_EPS = 1e-12


def fitted_positions(image: Tensor, axis: int, length: int, *, cut: bool) -> Tensor:
    """``image`` (1, C, F', T') of positions with ``length`` places along frequency (axis 0) or time (1).

    With ``cut`` fewer places are the middle of them, as where the original loads its weights; else all are stretched.
    """
    own = image.shape[2 + axis]
    if length == own:
        return image
    if length < own and cut:
        return image.narrow(2 + axis, own // 2 - length // 2, length)
    size = [image.shape[2], image.shape[3]]
    size[axis] = length
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


class AstBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.add1 = AddBranch(drop_path)
        self.add2 = AddBranch(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.add1(x, self.proj(attended))
        return self.add2(x, self.mlp(self.norm2(x)))


@register_model("ast_base")  # 86.59 M parameters, 130.51 G MACs (527 classes, 128 x 1024, with attention)
class AST(SpectrogramModel):
    """Audio Spectrogram Transformer with class and distillation tokens.

    The learned positions belong to the grid of ``mels`` x ``frames``; for a larger input they are interpolated.

    Args:
        num_classes: width of the head; 0 means no head, and the model returns features.
        embed_dim, depth, heads, mlp_ratio: size of the transformer.
        patch_size, patch_stride: in (mels, frames), equal along both by default.
        drop_path: stochastic depth of the last block; it rises linearly from 0.
        short_positions: what a smaller input takes of the positions: "interpolate" shrinks them, "crop" cuts out their
            middle, as the original does when it loads its weights for shorter clips.
        pool: what features are the mean of: the two "special" tokens, as in the original, or the "patch" tokens.
        mels, frames: reference input size.
    """

    blocks: nn.Sequential

    any_length = True

    def __init__(
        self,
        *,
        num_classes: int = 0,
        embed_dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        patch_stride: int = 10,
        drop_path: float = 0.0,
        short_positions: str = "interpolate",
        pool: str = "special",
        mels: int = 128,
        frames: int = 1024,
    ) -> None:
        if embed_dim < 1 or heads < 1 or embed_dim % heads or depth < 1:
            raise ValueError(f"embed_dim={embed_dim} must be a multiple of heads={heads}, and depth={depth} positive")
        if patch_size < 1 or patch_stride < 1:
            raise ValueError(f"patch_size={patch_size} and patch_stride={patch_stride} must be positive")
        if short_positions not in ("interpolate", "crop"):
            raise ValueError(f"short_positions={short_positions!r} must be interpolate or crop")
        if pool not in ("special", "patch"):
            raise ValueError(f"pool={pool!r} must be special or patch")
        config = {
            "num_classes": num_classes,
            "embed_dim": embed_dim,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "patch_size": patch_size,
            "patch_stride": patch_stride,
            "drop_path": drop_path,
            "short_positions": short_positions,
            "pool": pool,
            "mels": mels,
            "frames": frames,
        }
        super().__init__(config, num_features=embed_dim)
        self.patch_embed = PatchEmbed(embed_dim, (patch_size, patch_size), (patch_stride, patch_stride), (0, 0))
        self.grid = self.patch_embed.grid(mels, frames)
        self.special_tokens = nn.Parameter(torch.zeros(1, 2, embed_dim))
        self.positions = nn.Parameter(torch.zeros(1, 2 + self.grid[0] * self.grid[1], embed_dim))
        self.blocks = nn.Sequential(
            *(AstBlock(embed_dim, heads, mlp_ratio, rate) for rate in stochastic_depth_rule(drop_path, depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.special_tokens, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.reset_classifier(num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        """LayerNorm and linear, as in AST."""
        return nn.Sequential(nn.LayerNorm(self.num_features, eps=NORM_EPS), nn.Linear(self.num_features, num_classes))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: biases, norms, tokens, positions."""
        return super().no_weight_decay() | {"special_tokens", "positions"}

    def positions_at(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.positions
        image = self.position_image()
        if self.config["short_positions"] == "crop":
            image = self.fitted_positions(self.fitted_positions(image, 0, grid[0]), 1, grid[1])
        else:
            image = F.interpolate(image, size=grid, mode="bilinear", align_corners=False)
        return torch.cat((self.positions[:, :2], image.flatten(2).transpose(1, 2)), dim=1)

    def position_image(self) -> Tensor:
        """Positions of the patches on the reference grid, (1, embed_dim, F', T')."""
        return self.positions[:, 2:].transpose(1, 2).unflatten(2, self.grid)

    def fitted_positions(self, image: Tensor, axis: int, length: int) -> Tensor:
        """``image`` (1, embed_dim, F', T') with ``length`` places along frequency (axis 0) or time (1)."""
        return fitted_positions(image, axis, length, cut=self.config["short_positions"] == "crop")

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens after the final norm (B, 2 + N, embed_dim), the two special ones first."""
        check_spectrogram(x, self.name or type(self).__name__)
        patches = self.patch_embed(x)
        positions = self.positions_at((patches.shape[1], patches.shape[2]))
        special = self.special_tokens.expand(x.shape[0], -1, -1).to(patches.dtype)
        tokens = torch.cat((special, patches.flatten(1, 2)), dim=1)
        return self.norm(self.blocks(tokens + positions))

    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> patch tokens on their grid of frequency and time (B, F', T', embed_dim)."""
        frequency, _ = self.patch_embed(x[:1]).shape[1:3]
        return self.forward_features(x)[:, 2:].unflatten(1, (frequency, -1))

    @property
    def stride(self) -> tuple[int, int]:
        """Mel bins and frames between neighbouring tokens of ``forward_grid``."""
        return self.config["patch_stride"], self.config["patch_stride"]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes), or the mean of those that ``pool`` names (B, embed_dim)."""
        features = (tokens[:, 0] + tokens[:, 1]) / 2 if self.config["pool"] == "special" else tokens[:, 2:].mean(dim=1)
        return features if pre_logits else self.head(features)
