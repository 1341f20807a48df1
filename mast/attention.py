"""Pooling attention and the transformer block built on it (MViTv2, Li et al. 2022)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mast import fused, kernels
from mast.layers import AddBranch, Mlp
from mast.observers import observed, transformed
from mast.recompute import recomputed
from mast.relative import Grid, RelativeTable, attention

NORM_EPS = 1e-6

# Blocks up to this many channels compute the hidden layer of their MLP again in the backward pass: they have the most
# tokens, so it is large, and the fewest products per value, so it is cheap.
CHEAP_DIM = 192


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
        if kernels.usable(x, self.weight.shape[0]) and _as_made(self.norm, nn.LayerNorm):
            norm = self.norm
            return kernels.pool(x, self.weight, norm.weight, norm.bias, heads, list(self.stride), norm.eps)[0]
        # Tokens lie in memory as a channels-last image, so this permutation copies nothing.
        image = x.permute(0, 3, 1, 2)
        weight = self.weight.repeat(heads, 1, 1, 1)
        image = F.conv2d(image, weight, stride=self.stride, padding=1, groups=x.shape[-1])
        out = image.permute(0, 2, 3, 1)
        out = out.reshape(*out.shape[:3], heads, self.weight.shape[0])
        return self.norm(out).to(out.dtype)


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

    def macs(self, grid: Grid) -> int:
        """Multiply-accumulates of the attention itself for one sample: q k^T, weights v, and the relative terms."""
        q_grid, k_grid = pooled(grid, self.pool_q.stride), pooled(grid, self.pool_k.stride)
        queries, keys = q_grid[0] * q_grid[1], k_grid[0] * k_grid[1]
        return queries * (2 * keys + sum(k_grid)) * self.proj.in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T, dim) -> (B, F', T', dim_out), with (F', T') the pooled grid of the queries."""
        # Three products rather than one: their results are contiguous, which the convolutions need.
        q, k, v = (
            pool(F.linear(x, weight, bias), self.heads)
            for pool, weight, bias in zip(
                (self.pool_q, self.pool_k, self.pool_v), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True
            )
        )
        r_freq = self.relative_freq(q.shape[1], k.shape[1]).to(q.dtype)
        r_time = self.relative_time(q.shape[2], k.shape[2]).to(q.dtype)
        out = q + attention(q, k, v, r_freq, r_time)  # in this order the sum has the layout of q
        return self.proj(out.flatten(3))

    def fused(self, x: Tensor, norm: nn.LayerNorm, residual: bool = False, shares: Tensor | None = None) -> Tensor:
        """``forward(norm(x))`` fused; with ``residual``, ``x + shares * forward(norm(x))``."""
        settings = fused.AttentionSettings(self.heads, self.pool_q.stride, self.pool_k.stride, NORM_EPS, residual)
        q_grid, k_grid = (
            pooled((x.shape[1], x.shape[2]), stride) for stride in (settings.q_stride, settings.kv_stride)
        )
        parameters = [norm.weight, norm.bias, self.qkv.weight, self.qkv.bias]
        for pool in (self.pool_q, self.pool_k, self.pool_v):
            parameters += [pool.weight, pool.norm.weight, pool.norm.bias]
        freq, time = self.relative_freq(q_grid[0], k_grid[0]), self.relative_time.diagonals(q_grid[1], k_grid[1])
        time = self.relative_time(q_grid[1], k_grid[1]) if time is None else time
        weights = fused.AttentionWeights._make([*parameters, freq, time, self.proj.weight, self.proj.bias])
        return fused.attention_branch(x, settings, weights, shares)


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

    def _residual(self, x: Tensor, normed: Tensor) -> Tensor:
        x = self.shortcut(normed) if self.shortcut is not None else x
        if self.q_stride == (1, 1):
            return x
        # An odd window centred on each kept position: the same output grid as the queries' convolution.
        window = [s + 1 - s % 2 for s in self.q_stride]
        image = F.max_pool2d(x.permute(0, 3, 1, 2), window, self.q_stride, [w // 2 for w in window])
        return image.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T, dim) -> (B, F', T', dim_out)."""
        if self._fused(x):
            return self._forward_fused(x)
        normed = self.norm1(x)
        with recomputed(self.norm1, x, normed):
            branch, residual = self.attn(normed), self._residual(x, normed)
        x = self.add1(residual, branch)
        return self.add2(x, self._mlp_branch(x))

    def _forward_fused(self, x: Tensor) -> Tensor:
        if self.shortcut is None and self.q_stride == (1, 1):
            x = self.attn.fused(x, self.norm1, True, self.add1.shares(x))
        else:
            normed = x if self.shortcut is None else self.norm1(x)
            x = self.add1(self._residual(x, normed), self.attn.fused(x, self.norm1))
        layers = (self.norm2, self.mlp.fc1, self.mlp.fc2)
        parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        return fused.mlp_branch(x, NORM_EPS, self.add2.shares(x), *parameters)

    def _fused(self, x: Tensor) -> bool:
        """Whether the branches can run fused: nobody follows the layers within, and all are as they were made."""
        # Read directly: this runs for every block of every call, and a module's attributes take their time.
        mine: dict[str, Any] = self._modules
        attn, mlp = mine["attn"], mine["mlp"]
        if observed() or not x.numel() or not _as_made(attn, PoolingAttention) or not _as_made(mlp, Mlp):
            return False
        within, hidden = attn._modules, mlp._modules
        pools = (within["pool_q"], within["pool_k"], within["pool_v"])
        if not all(_as_made(pool, DepthwisePool) for pool in pools):
            return False
        if not _as_made(mine["add1"], AddBranch) or not _as_made(mine["add2"], AddBranch):
            return False
        linear = (within["qkv"], within["proj"], hidden["fc1"], hidden["fc2"])
        norms = (mine["norm1"], mine["norm2"], *(pool._modules["norm"] for pool in pools))
        if not all(_as_made(layer, nn.Linear) and layer._parameters.get("bias") is not None for layer in linear):
            return False
        if not all(
            _as_made(n, nn.LayerNorm) and n.eps == NORM_EPS and n._parameters.get("bias") is not None for n in norms
        ):
            return False
        if x.ndim != 4 or x.shape[-1] != linear[0].in_features:  # for the plain layers to refuse
            return False
        widths = (x.shape[-1], linear[1].in_features // attn.heads, linear[2].out_features)
        return fused.usable(x, *widths) and all(map(_in_memory, (*linear, *norms, *pools)))

    def _mlp_branch(self, x: Tensor) -> Tensor:
        followed = torch.compiler.is_compiling() or transformed() or not _as_made(self.mlp, Mlp)
        if torch.is_grad_enabled() and x.shape[-1] <= CHEAP_DIM and not followed:
            # Checkpointing stops before fc2, so that only the norm and fc1 are computed again.
            return checkpoint(lambda x: self.mlp.plain(self.norm2(x)), x, use_reentrant=False, preserve_rng_state=False)
        normed = self.norm2(x)
        with recomputed(self.norm2, x, normed):
            return self.mlp(normed)


def _as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is what the block was made with: not replaced, wrapped, patched or hooked."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is kind and not hooks and "forward" not in module.__dict__


def _in_memory(module: nn.Module) -> bool:
    """Whether kernels can read the weights; tensors of other kinds, such as sharded ones, keep values elsewhere."""
    for weight in module._parameters.values():
        plain = weight is None or (type(weight) is nn.Parameter and weight.is_cpu and weight.dtype is torch.float32)
        if not plain or (weight is not None and not weight.is_contiguous()):
            return False
    return True
