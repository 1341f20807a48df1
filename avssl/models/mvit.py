"""MViTv2's attention with relative positions within a fused kernel.

torchvision's adds the positions to the whole matrix of scores, which costs memory, and gives wrong features when
compiled for a GPU (seen with torch 2.11). Here queries and keys are widened as in ``mast.relative``: with the scores of
a query along time, height and width behind it, and one-hot codes of the key's place behind the key, one product is
their sum.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.mvit import MultiscaleAttention, Pool

from mast.relative import cached, filler_for, key_positions

Size = tuple[int, int, int]

_FORMULAS = ("bnthwc,tkc->bnthwk", "bnthwc,hkc->bnthwk", "bnthwc,wkc->bnthwk")


class FusedAttention(nn.Module):
    """Computes what ``attention`` computes, with its weights and their names.

    Args:
        attention: torchvision's, with pooled keys and values and relative positions. Its parts become this one's.

    Raises:
        ValueError: it has no relative positions.
    """

    def __init__(self, attention: MultiscaleAttention) -> None:
        super().__init__()
        if attention.rel_pos_t is None:
            raise ValueError("attention without relative positions needs no widened heads")
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
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
        places = q[:, :, 1:].unflatten(2, q_size)
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


def _vectors(table: Tensor, q_length: int, k_length: int) -> Tensor:
    """The vectors for all pairs along one axis, (q_length, k_length, C), out of ``table`` (distances, C)."""
    index = cached(_distances, q_length, k_length, table.device)
    return table.index_select(0, index).view(q_length, k_length, -1)


def _distances(q_length: int, k_length: int, device: torch.device) -> Tensor:
    """Row of the table for each (query, key), flattened. As torchvision counts: in the finer grid's steps."""
    q_step, k_step = max(k_length / q_length, 1.0), max(q_length / k_length, 1.0)
    q, k = torch.arange(q_length, device=device), torch.arange(k_length, device=device)
    return (q[:, None] * q_step + (k_length - 1 - k)[None] * k_step).long().flatten()
