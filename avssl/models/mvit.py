"""MViTv2's attention with relative positions within a fused kernel.

torchvision's adds the positions to the whole matrix of scores, which costs memory, and gives wrong features when
compiled for a GPU (seen with torch 2.11). Here queries and keys are widened as in ``mast.fast.widened``: with the
scores of a query along time, height and width behind it, and one-hot codes of the key's place behind the key, one
product is their sum.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.mvit import MultiscaleAttention, Pool

from mast.fast.widened import cached, filler_for, key_positions

Size = tuple[int, int, int]

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

    def forward(self, x: Tensor, thw: Size) -> tuple[Tensor, Size]:
        """Tokens (B, 1 + T * H * W, C) behind a class token, and (T, H, W) -> the same of the pooled queries."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.transpose(1, 3).unbind(dim=2)
        k, k_size = self.pool_k(k, thw) if self.pool_k is not None else (k, thw)
        v = self.pool_v(v, thw)[0] if self.pool_v is not None else v
        q, q_size = self.pool_q(q, thw) if self.pool_q is not None else (q, thw)
        out = self._attend(q, k, v, q_size, k_size)
        if self.residual_pool and self.residual_with_cls_embed:
            out = out + q.to(out.dtype)
        elif self.residual_pool:
            out = torch.cat((out[:, :, :1], out[:, :, 1:] + q[:, :, 1:].to(out.dtype)), dim=2)
        return self.project(out.transpose(1, 2).flatten(2)), q_size

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_size: Size, k_size: Size) -> Tensor:
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
