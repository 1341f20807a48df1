"""MViTv2's attention with relative positions within a fused kernel.

torchvision's adds the positions to the whole matrix of scores, which costs memory, and gives wrong features when
compiled for a GPU (seen with torch 2.11). Here queries and keys are widened as in ``mast.fast.widened``: with the
scores of a query along time, height and width behind it, and one-hot codes of the key's place behind the key, one
product is their sum. On a GPU, in half precision, the pooling of queries, keys and values is one kernel
(``mast.fast.cuda.pooling3d``), for which torch has slow depthwise convolutions.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.mvit import MultiscaleAttention, Pool

from mast.fast import comparison, cuda
from mast.fast.blocks import is_unmodified
from mast.fast.observers import observed
from mast.fast.widened import cached, filler_for, key_positions

Size = tuple[int, int, int]
Pools = tuple[Pool | None, ...]
Pooled = tuple[Tensor, Tensor, Tensor]

_FORMULAS = ("bnthwc,tkc->bnthwk", "bnthwc,hkc->bnthwk", "bnthwc,wkc->bnthwk")


class FusedAttention(nn.Module):
    """Computes what ``attention`` computes, with its weights and their names.

    Args:
        attention: torchvision's, with pooled keys and values and relative positions. Its parts become this one's.
        scaled_positions: Divide the scores of relative positions by sqrt(dim) with those of the content, as MViTv2's
            equation 4 is printed; else as the authors' code (SlowFast) and torchvision have it: the content alone.
            Weights of the one rule give the same in the other after :func:`scale_positions` or its inverse.

    Raises:
        ValueError: it has no relative positions.
    """

    def __init__(self, attention: MultiscaleAttention, scaled_positions: bool = False) -> None:
        super().__init__()
        if attention.rel_pos_t is None:
            raise ValueError("attention without relative positions needs no widened heads")
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.position_scale = self.head_dim**-0.5 if scaled_positions else 1.0
        self.residual_pool, self.residual_with_cls_embed = attention.residual_pool, attention.residual_with_cls_embed
        self.qkv, self.project = attention.qkv, attention.project
        self.pool_q: Pool | None = attention.pool_q  # type: ignore[assignment]
        self.pool_k: Pool | None = attention.pool_k  # type: ignore[assignment]
        self.pool_v: Pool | None = attention.pool_v  # type: ignore[assignment]
        self.rel_pos_h, self.rel_pos_w, self.rel_pos_t = attention.rel_pos_h, attention.rel_pos_w, attention.rel_pos_t
        self.kernels, self.plain_because = False, ""

    def use_kernels(self, kernels: tuple[str, ...]) -> str:
        """See ``mast.fast.OwnKernels``."""
        self.kernels, self.plain_because = "cuda" in kernels, ""
        if self.backend() == "cuda":
            self.plain_because = _difference(self._pools, self.num_heads, self.qkv.weight.device)
        return self.plain_because

    def backend(self) -> str:
        """See ``mast.fast.OwnKernels``."""
        if self.plain_because:
            return f"reference: {self.plain_because}"
        here = self.kernels and self.qkv.weight.is_cuda and cuda.fits(self.head_dim)
        return "cuda" if here and kernels_serve(self._pools) else "operators"

    @property
    def _pools(self) -> Pools:
        return self.pool_q, self.pool_k, self.pool_v

    def forward(self, x: Tensor, thw: Size) -> tuple[Tensor, Size]:
        """Tokens (B, 1 + T * H * W, C) behind a class token, and (T, H, W) -> the same of the pooled queries."""
        qkv = self.qkv(x)
        pool = pool_by_kernels if self._kernels_take(qkv) else pool_plainly
        (q, k, v), q_size, k_size = pool(self._pools, qkv, self.num_heads, thw)
        out = self.attend(q, k, v, q_size, k_size)
        if self.residual_pool and self.residual_with_cls_embed:
            out = out + q.to(out.dtype)
        elif self.residual_pool:
            out = torch.cat((out[:, :, :1], out[:, :, 1:] + q[:, :, 1:].to(out.dtype)), dim=2)
        return self.project(out.transpose(1, 2).flatten(2)), q_size

    def _kernels_take(self, qkv: Tensor) -> bool:
        """Whether the GPU's kernels pool ``qkv``; compares them with the plain code where nobody has yet."""
        if not self.kernels or self.plain_because or not cuda.usable(qkv, self.head_dim):
            return False
        if not kernels_serve(self._pools):
            return False
        if not observed():
            self.plain_because = _difference(self._pools, self.num_heads, qkv.device)
            if self.plain_because:
                comparison.warn_of_plain(["pooling of MViTv2"], self.plain_because)
        return not self.plain_because

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_size: Size, k_size: Size) -> Tensor:
        places = q[:, :, 1:].unflatten(2, q_size) * self.position_scale
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        scores = [
            torch.einsum(formula, places, _vectors(table, q_length, k_length))
            for formula, table, q_length, k_length in zip(_FORMULAS, tables, q_size, k_size, strict=True)
        ]
        dtype, filler = scores[0].dtype, filler_for(self.head_dim + sum(k_size))
        # The class token has no place: zeros in front, and zeros behind up to a width that kernels like.
        positions = F.pad(torch.cat(scores, dim=-1).flatten(2, 4), (0, filler, 1, 0))
        codes = F.pad(cached(key_positions, k_size, sum(k_size) + filler, dtype, k.device), (0, 0, 1, 0))
        wide_q = torch.cat(((q * self.head_dim**-0.5).to(dtype), positions), dim=-1)
        wide_k = torch.cat((k.to(dtype), codes.expand(*k.shape[:2], -1, -1)), dim=-1)
        wide_v = F.pad(v.to(dtype), (0, codes.shape[-1]))  # fused kernels want one width
        return F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)[..., : self.head_dim]


def pool_plainly(pools: Pools, qkv: Tensor, heads: int, thw: Size) -> tuple[Pooled, Size, Size]:
    """Queries, keys and values (B, heads, 1 + T' * H' * W', C) out of one product, and the grids of two of them.

    Args:
        pools: of queries, keys and values, None where one of them is not pooled.
        qkv: (B, 1 + T * H * W, 3 * heads * C).
        thw: (T, H, W).
    """
    parts = qkv.unflatten(2, (3, heads, -1)).transpose(1, 3).unbind(dim=2)
    found = [pool(x, thw) if pool is not None else (x, thw) for pool, x in zip(pools, parts, strict=True)]
    (q, q_size), (k, k_size), (v, _) = found
    return (q, k, v), q_size, k_size


def pool_by_kernels(pools: Pools, qkv: Tensor, heads: int, thw: Size) -> tuple[Pooled, Size, Size]:
    """The same by the GPU's kernels, for pools that :func:`kernels_serve`."""
    convolutions, norms = ([part(pool) for pool in pools] for part in (_convolution, _norm))
    steps = [convolution.stride[1] for convolution in convolutions]
    parameters = [p for c, n in zip(convolutions, norms, strict=True) for p in (c.weight, n.weight, n.bias)]
    q, k, v = cuda.pool3d(qkv, parameters, heads, list(thw), steps[0], steps[1], norms[0].eps)[:3]
    q_size, k_size = ((thw[0], -(-thw[1] // step), -(-thw[2] // step)) for step in steps[:2])
    return (q, k, v), q_size, k_size


def _convolution(pool: Any) -> Any:
    return pool.pool


def _norm(pool: Any) -> Any:
    return pool.norm_act[0]


def kernels_serve(pools: Pools) -> bool:
    """Whether these are what there are kernels for: 3x3x3 depthwise convolution, then LayerNorm, as they were made."""
    for pool in pools:
        if pool is None or not is_unmodified(pool, Pool) or pool.norm_before_pool or pool.norm_act is None:
            return False
        if not is_unmodified(pool.norm_act, nn.Sequential) or len(pool.norm_act) != 1:
            return False
        c, n = _convolution(pool), _norm(pool)
        if not is_unmodified(n, nn.LayerNorm) or n.bias is None or n.eps != _norm(pools[0]).eps:
            return False
        if (
            not isinstance(c, nn.Conv3d)
            or not is_unmodified(c, type(c))
            or c.bias is not None
            or c.padding_mode != "zeros"
        ):
            return False
        if (c.kernel_size, c.padding, c.dilation) != ((3, 3, 3), (1, 1, 1), (1, 1, 1)):
            return False
        if c.stride[0] != 1 or c.stride[1] != c.stride[2] or not c.groups == c.in_channels == c.out_channels:
            return False
    return bool(_convolution(pools[1]).stride == _convolution(pools[2]).stride)


# By kind of pooling, once it was compared with the plain code: how they differ, "" where they do not.
known_differences: dict[tuple[Any, ...], str] = {}


def _difference(pools: Pools, heads: int, device: torch.device) -> str:
    """How the kernels pool differently from ``pools``, on a small clip with random weights; "" where they do not.

    Looked at once for each kind: geometry and code.
    """
    key: tuple[Any, ...] = heads, device.type
    for pool in pools:
        c, n = _convolution(pool), _norm(pool)
        key += (Pool.forward, type(c).forward, type(n).forward, c.in_channels, c.stride, n.eps)
    if key not in known_differences:
        known_differences[key] = _compare(pools, heads, device)
    return known_differences[key]


def _compare(pools: Pools, heads: int, device: torch.device) -> str:
    size = (3, 3, 5)  # odd, so that windows are cut off
    try:
        with comparison.undisturbed(device):
            sample = copy.deepcopy(nn.ModuleList(pools)).float().to(device).requires_grad_()  # type: ignore[arg-type]
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for name, parameter in sample.named_parameters():
                    values = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(values / 5 + name.endswith("0.weight") if parameter.ndim == 1 else values / 5)
            width = 3 * heads * _convolution(pools[0]).in_channels
            x = torch.randn(2, 1 + 3 * 3 * 5, width, generator=generator).to(device)
            runs = [
                _run(each, tuple(sample), x.to(dtype), heads, size)  # type: ignore[arg-type]
                for each, dtype in (
                    (pool_plainly, torch.float32),
                    (pool_by_kernels, torch.bfloat16),
                    (pool_plainly, torch.bfloat16),
                )
            ]
            return comparison.differing_in_half(*runs)
    except Exception as error:  # such as a kernel that does not compile here
        return f"it could not be compared ({type(error).__name__}: {error})"


def _run(
    pool: Callable[..., tuple[Pooled, Size, Size]], pools: Pools, x: Tensor, heads: int, size: Size
) -> dict[str, Tensor]:
    """Values and gradients, under autocast where ``x`` is of half precision."""
    given = x.clone().requires_grad_()
    leaves = [given, *(parameter for each in pools if each is not None for parameter in each.parameters())]
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        pooled, _, _ = pool(pools, given, heads, size)
    weights = [torch.linspace(-1, 1, each.numel(), device=x.device).view_as(each).to(each.dtype) for each in pooled]
    gradients = torch.autograd.grad(pooled, leaves, weights)
    found = {f"values {place}": each for place, each in enumerate(pooled)}
    found |= {f"gradient {place}": each for place, each in enumerate(gradients)}
    return {name: value.detach().double() for name, value in found.items()}


def scale_positions(state: Mapping[str, Tensor], inverse: bool = False) -> dict[str, Tensor]:
    """Weights that give with scaled positions what ``state`` gives without: tables times sqrt(dim).

    Args:
        state: name -> tensor of an MViT, of torchvision's names or SlowFast's; tables are ``rel_pos_*`` (distances,
            dim).
        inverse: The way back, to what torchvision and SlowFast take.
    """
    power = -0.5 if inverse else 0.5
    return {
        name: tensor * tensor.shape[1] ** power if ".rel_pos_" in name else tensor for name, tensor in state.items()
    }


# Names in torchvision's MViT and in SlowFast's, both ways; what is behind them (weight, bias) is the same.
_NAMES = (
    ("conv_proj.", "patch_embed.proj."),
    ("pos_encoding.class_token", "cls_token"),
    (".attn.project.0.", ".attn.proj."),
    (".attn.pool_q.pool.", ".attn.pool_q."),
    (".attn.pool_k.pool.", ".attn.pool_k."),
    (".attn.pool_v.pool.", ".attn.pool_v."),
    (".attn.pool_q.norm_act.0.", ".attn.norm_q."),
    (".attn.pool_k.norm_act.0.", ".attn.norm_k."),
    (".attn.pool_v.norm_act.0.", ".attn.norm_v."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    (".project.", ".proj."),
    ("head.1.", "head.projection."),
)


def from_slowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of SlowFast's MViTv2 (``model_state`` of its files) under torchvision's names; nothing else changes.

    The backbone of mvit_v2_s without ``scaled_positions`` then computes what SlowFast computes.
    """
    return _renamed(state, [(theirs, ours) for ours, theirs in _NAMES], token_dims=1)


def to_slowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of :func:`from_slowfast`."""
    return _renamed(state, list(_NAMES), token_dims=3)


def _renamed(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]], token_dims: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = next(((old, new) for old, new in names if old in name), None)
        if found is not None:
            name = name.replace(*found)
        if name in ("cls_token", "pos_encoding.class_token"):
            tensor = tensor.reshape((1,) * (token_dims - 1) + (-1,))
        out[name] = tensor
    return out


def _vectors(table: Tensor, q_length: int, k_length: int) -> Tensor:
    """The vectors for all pairs along one axis, (q_length, k_length, C), out of ``table`` (distances, C)."""
    index = cached(_distances, q_length, k_length, table.device)
    return table.index_select(0, index).view(q_length, k_length, -1)


def _distances(q_length: int, k_length: int, device: torch.device) -> Tensor:
    """Row of the table for each (query, key), flattened. As torchvision counts: in the finer grid's steps."""
    q_step, k_step = max(k_length / q_length, 1.0), max(q_length / k_length, 1.0)
    q, k = torch.arange(q_length, device=device), torch.arange(k_length, device=device)
    return (q[:, None] * q_step + (k_length - 1 - k)[None] * k_step).long().flatten()
