"""MAST (Multiscale Audio Spectrogram Transformer), whole, top to bottom, as its formulas are written.

Spectrogram -> overlapping patches -> stages of blocks -> norm -> mean over tokens -> linear head. A block is pooling
attention and an MLP. Queries, keys and values are pooled by strided depthwise convolutions; the first block of a stage
doubles the channels and pools its queries, and so the grid, along time alone (1-D) or along frequency and time (2-D).

This file is the reference: change it, and the model changes. ``mast.fast`` computes the same faster; it compares its
blocks with these when it takes their place (``mast.accelerate``), and leaves these where the results differ.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast.base import SpectrogramModel, check_spectrogram, init_weights
from mast.registry import register_model

Grid = tuple[int, int]

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Overlapping patches of a spectrogram, as tokens on a grid.

    Args:
        dim: channels of a token.
        kernel: patch size in (mels, frames).
        stride: distance between patches in (mels, frames).
        padding: zeros on both sides in (mels, frames).
    """

    def __init__(self, dim: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, kernel, stride, padding)
        # Like a linear layer: a patch is a vector of kernel[0] * kernel[1] values.
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        # Not 0, as it is not in MViTv2's and MAE's code either: a blank patch, masked or dropped, would be 0 in all
        # channels, where the gradient of a layer norm is a thousand times too large. As wide as mask tokens begin.
        assert self.proj.bias is not None
        with torch.no_grad():
            self.proj.bias.mul_(0.02 * math.sqrt(3 * kernel[0] * kernel[1]))  # it is uniform, to 1 / sqrt(values)

    def grid(self, mels: int, frames: int) -> tuple[int, int]:
        """Number of patches in (frequency, time). ValueError for an input smaller than one patch."""
        size = []
        for axis, (length, what) in enumerate(((mels, "mels"), (frames, "frames"))):
            shortest = self.proj.kernel_size[axis] - 2 * self.proj.padding[axis]  # type: ignore[operator]
            if length < shortest:
                raise ValueError(f"spectrogram has {length} {what}, the patch embedding needs at least {shortest}")
            size.append((length - shortest) // self.proj.stride[axis] + 1)
        return size[0], size[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> (B, F, T, dim)."""
        self.grid(x.shape[2], x.shape[3])
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


def pooled(grid: Grid, stride: Grid) -> Grid:
    """Size of a grid after pooling with ``stride``: rounded up, as 3x3 convolution with padding 1 gives it."""
    return -(-grid[0] // stride[0]), -(-grid[1] // stride[1])


class DepthwisePool(nn.Module):
    """3x3 depthwise convolution with a stride, then LayerNorm, both on each head's channels.

    The heads share the weights, as in MViTv2.

    Args:
        dim: channels of one head.
        stride: in (frequency, time).
    """

    def __init__(self, dim: int, stride: Grid) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(nn.Conv2d(dim, dim, 3, groups=dim, bias=False).weight.detach().clone())
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor, heads: int) -> Tensor:
        """(B, F, T, heads * dim) -> (B, F', T', heads, dim)."""
        # Tokens lie in memory as a channels-last image, so this permutation copies nothing.
        image = x.permute(0, 3, 1, 2)
        weight = self.weight.repeat(heads, 1, 1, 1)
        image = F.conv2d(image, weight, stride=self.stride, padding=1, groups=x.shape[-1])
        out = image.permute(0, 2, 3, 1)
        out = out.reshape(*out.shape[:3], heads, self.weight.shape[0])
        return self.norm(out).to(out.dtype)


class RelativeTable(nn.Module):
    """One learned vector per relative distance along one axis.

    Distances are counted in steps of the finer of the two grids (queries, keys), so that an entry means the same
    distance at any input length. A shorter input uses the middle of the table; a longer one, the table linearly
    interpolated to its length.

    Args:
        length: positions along the axis of the block's input, at the model's reference input.
        q_stride, k_stride: pooling of queries and keys along the axis.
        dim: channels of one head.
        scaled: False gives vectors times sqrt(dim), which takes back what attention divides all scores by.
    """

    def __init__(self, length: int, q_stride: int, k_stride: int, dim: int, scaled: bool = True) -> None:
        super().__init__()
        self.q_stride, self.k_stride = q_stride, k_stride
        self.factor = 1.0 if scaled else dim**0.5
        self.table = nn.Parameter(torch.empty(2 * -(-length // min(q_stride, k_stride)) - 1, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, q_size: int, k_size: int) -> Tensor:
        """Vectors for all pairs, (q_size, k_size, dim)."""
        table = self.covering(max(q_size, k_size))
        index = distance_index(q_size, k_size, self.q_stride, self.k_stride, table.shape[0], table.device)
        return table.index_select(0, index).view(q_size, k_size, -1)

    def covering(self, reach: int) -> Tensor:
        """The table, of at least ``reach`` steps each way."""
        table: Tensor = self.table if self.factor == 1.0 else self.table * self.factor
        if 2 * reach - 1 > table.shape[0]:
            table = F.interpolate(table.t()[None], size=2 * reach - 1, mode="linear", align_corners=True)[0].t()
        return table


def distance_index(
    q_size: int, k_size: int, q_stride: int, k_stride: int, entries: int, device: torch.device
) -> Tensor:
    """Row of the table for each pair (query, key), flattened: the table's middle is distance 0."""
    unit = min(q_stride, k_stride)
    q = torch.arange(q_size, device=device)[:, None] * q_stride
    k = torch.arange(k_size, device=device)[None, :] * k_stride
    distance = torch.div(q - k, unit, rounding_mode="floor") + entries // 2
    return distance.clamp_(0, entries - 1).flatten()


def attention(q: Tensor, k: Tensor, v: Tensor, r_freq: Tensor, r_time: Tensor) -> Tensor:
    """softmax((q k^T + relative) / sqrt(dim)) v: MViTv2's equation 4, its positions decomposed into frequency and time.

    The score of query i and key j is ``q_i . (k_j + R_f[f_i - f_j] + R_t[t_i - t_j]) / sqrt(dim)``.

    Args:
        q: (B, F_q, T_q, heads, dim).
        k, v: (B, F_k, T_k, heads, dim).
        r_freq: (F_q, F_k, dim).
        r_time: (T_q, T_k, dim).

    Returns:
        (B, F_q, T_q, heads, dim).
    """
    batch, rows, columns, heads, dim = q.shape
    content = torch.einsum("bfthc,bgshc->bhftgs", q, k)
    along_freq = torch.einsum("bfthc,fgc->bhftg", q, r_freq)[..., None]
    along_time = torch.einsum("bfthc,tsc->bhfts", q, r_time)[..., None, :]
    scores = (content + along_freq + along_time) * dim**-0.5
    weights = scores.flatten(4).softmax(dim=-1)
    out = weights.flatten(2, 3) @ v.flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).reshape(batch, rows, columns, heads, dim)


class PoolingAttention(nn.Module):
    """Multi-head attention over pooled queries, keys and values, with relative positions and residual queries.

    Args:
        dim: channels of the input.
        dim_out: channels of queries, keys, values and output.
        heads: must divide ``dim_out``.
        grid: (F, T) of the input at the model's reference size; sets the length of the relative tables.
        q_stride, kv_stride: pooling in (frequency, time).
        scaled_positions: divide the scores of the relative positions by sqrt(dim of a head), too.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        grid: Grid,
        q_stride: Grid,
        kv_stride: Grid,
        scaled_positions: bool = True,
    ) -> None:
        super().__init__()
        if dim_out % heads:
            raise ValueError(f"{heads} heads do not divide {dim_out} channels")
        self.heads = heads
        head_dim = dim_out // heads
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.pool_q = DepthwisePool(head_dim, q_stride)
        self.pool_k = DepthwisePool(head_dim, kv_stride)
        self.pool_v = DepthwisePool(head_dim, kv_stride)
        self.relative_freq = RelativeTable(grid[0], q_stride[0], kv_stride[0], head_dim, scaled_positions)
        self.relative_time = RelativeTable(grid[1], q_stride[1], kv_stride[1], head_dim, scaled_positions)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T, dim) -> (B, F', T', dim_out), with (F', T') the pooled grid of the queries."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = self.pool_q(q, self.heads), self.pool_k(k, self.heads), self.pool_v(v, self.heads)
        r_freq = self.relative_freq(q.shape[1], k.shape[1]).to(q.dtype)
        r_time = self.relative_time(q.shape[2], k.shape[2]).to(q.dtype)
        out = q + attention(q, k, v, r_freq, r_time)  # the residual pooling connection
        return self.proj(out.flatten(3))


class Mlp(nn.Module):
    """Linear -> GELU -> Linear on the last dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class AddBranch(nn.Module):
    """Residual addition with stochastic depth (Huang et al. 2016): in training, drops a sample's branch.

    Args:
        drop_path: probability that a sample's branch is dropped; the kept ones are scaled by ``1 / (1 - drop_path)``.
    """

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is a probability below 1, got {drop_path}")
        self.drop_path = drop_path
        # Compiled code is made for one value of a number, but serves all values of a tensor: one code for all blocks.
        self.drops = drop_path > 0.0
        self.keep = torch.tensor(1.0 - drop_path, dtype=torch.float32, device="cpu")

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """``x + branch``, both (B, ...)."""
        shares = self.shares(branch)
        if shares is None:
            return x + branch
        return torch.addcmul(x, branch, shares) if x.dtype == branch.dtype else x + branch * shares

    def shares(self, branch: Tensor) -> Tensor | None:
        """Factors of the samples' branches (B, 1, ...), drawn anew: 0 or ``1 / (1 - drop_path)``. None if all are 1."""
        if not self.training or not self.drops:
            return None
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) < self.keep
        return kept.to(branch.dtype) / self.keep

    def extra_repr(self) -> str:
        """Shown in the model's print."""
        return f"drop_path={self.drop_path:.3g}"


def stochastic_depth_rule(drop_path: float, blocks: int) -> list[float]:
    """Drop probabilities rising linearly from 0 at the first block to ``drop_path`` at the last."""
    return [drop_path * index / max(1, blocks - 1) for index in range(blocks)]


class Block(nn.Module):
    """Pooling attention and MLP, each with pre-norm and a residual connection.

    Where the channels change, the residual is a projection of the normalised input; where the queries are pooled, it is
    max-pooled to their grid.

    Args:
        dim, dim_out, heads, grid, q_stride, kv_stride: see PoolingAttention.
        mlp_ratio: hidden width of the MLP in units of ``dim_out``.
        drop_path: probability of stochastic depth, in training.
        scaled_positions: see PoolingAttention.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        grid: Grid,
        q_stride: Grid,
        kv_stride: Grid,
        mlp_ratio: float,
        drop_path: float,
        scaled_positions: bool = True,
    ) -> None:
        super().__init__()
        self.q_stride, self.kv_stride = q_stride, kv_stride
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = PoolingAttention(dim, dim_out, heads, grid, q_stride, kv_stride, scaled_positions)
        self.shortcut = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.norm2 = nn.LayerNorm(dim_out, eps=NORM_EPS)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.add1 = AddBranch(drop_path)
        self.add2 = AddBranch(drop_path)

    def residual(self, x: Tensor, normed: Tensor) -> Tensor:
        """``x`` with the channels and on the grid of the attention's result."""
        x = self.shortcut(normed) if self.shortcut is not None else x
        if self.q_stride == (1, 1):
            return x
        # An odd window centred on each kept position: the same output grid as the queries' convolution.
        window = [s + 1 - s % 2 for s in self.q_stride]
        image = F.max_pool2d(x.permute(0, 3, 1, 2), window, self.q_stride, [w // 2 for w in window])
        return image.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T, dim) -> (B, F', T', dim_out)."""
        normed = self.norm1(x)
        x = self.add1(self.residual(x, normed), self.attn(normed))
        return self.add2(x, self.mlp(self.norm2(x)))


def pairs(name: str, values: Sequence[Sequence[int]], count: int) -> list[Grid]:
    """Check a list of (frequency, time) pairs; ValueError names the argument."""
    checked = [tuple(int(v) for v in value) for value in values]
    if len(checked) != count or any(len(pair) != 2 or min(pair) < 1 for pair in checked):
        raise ValueError(f"{name}: expected {count} pairs of positive (frequency, time) integers, got {values}")
    return checked  # type: ignore[return-value]


# Parameters are for 527 classes, multiply-accumulates for 128 x 1024 with attention (see mast.complexity).
@register_model("mast_base", embed_dim=96, depths=(2, 3, 16, 3), drop_path=0.1)  # 51.39 M parameters, 26.30 G MACs
@register_model("mast_small", embed_dim=96, depths=(1, 2, 11, 2), drop_path=0.1)  # 34.69 M, 18.17 G
@register_model("mast_tiny", embed_dim=96, depths=(1, 2, 5, 2), drop_path=0.1)  # 23.94 M, 11.41 G
@register_model("mast_pico", embed_dim=48, depths=(1, 2, 5, 2), drop_path=0.0)  # 6.17 M, 3.62 G: small data, CPUs
@register_model("mast_micro", embed_dim=32, depths=(1, 2, 4, 1), drop_path=0.0)  # 1.82 M, 1.66 G: a few hundred clips
@register_model("mast_nano", embed_dim=32, depths=(1, 1, 2, 1), drop_path=0.0)  # 1.36 M, 1.19 G: the demo, tests
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

    any_length = True

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
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        """All blocks from the input on."""
        return [block for stage in self.stages for block in stage.children()]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: biases, norms, relative positions."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(".table")}

    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens after the final norm on their grid (B, F', T', num_features)."""
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
