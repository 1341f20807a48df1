"""Decomposed relative positions along frequency and time, inside plain scaled-dot-product attention.

``mast.model.attention`` is the formula: to the score of query i and key j it adds ``q_i . R_f[f_i - f_j]`` and
``q_i . R_t[t_i - t_j]``. As a dense bias
this costs an N_q x N_k matrix per head. But the sum of the three terms is
one dot product of longer vectors,

    [q, a_f(q), a_t(q)] . [k, onehot(f_k), onehot(t_k)],   a_f(q)[m] = q . R_f[f_q - m],   a_t(q)[n] = q . R_t[t_q - n],

so widening the heads by F_k + T_k gives the same scores within a fused attention kernel and no matrix in memory.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mast.fast import cuda
from mast.fast.observers import observed
from mast.model import RelativeTable, distance_index

_ALIGNMENT = 8  # fused kernels want head dimensions in multiples of 8


def vectors(table: RelativeTable, q_size: int, k_size: int) -> Tensor:
    """Vectors for all pairs, (q_size, k_size, dim): ``table.forward`` with the places of its rows kept."""
    rows = table.covering(max(q_size, k_size))
    index = cached(distance_index, q_size, k_size, table.q_stride, table.k_stride, rows.shape[0], rows.device)
    return rows.index_select(0, index).view(q_size, k_size, -1)


def diagonals(table: RelativeTable, q_size: int, k_size: int) -> Tensor | None:
    """Vectors by falling distance: that of the pair (q, k) is row ``(q_size - 1 - q) * step + k``.

    Returns:
        ((q_size - 1) * step + k_size, dim) with ``step`` = q_stride / k_stride, much less than all pairs of long
        inputs; None where keys are pooled more than queries, so that there is no such order.
    """
    step, rest = divmod(table.q_stride, table.k_stride)
    rows = table.covering(max(q_size, k_size))
    first, past = rows.shape[0] // 2 - (k_size - 1), rows.shape[0] // 2 + (q_size - 1) * step + 1
    if rest or not step or first < 0 or past > rows.shape[0]:
        return None
    return rows[first:past].flip(0)


def key_positions(grid: Sequence[int], width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One-hot place along each axis of ``grid``, side by side, and zeros up to ``width``: (positions, width)."""
    codes = torch.zeros(*grid, width, dtype=dtype, device=device)
    first = 0
    for axis, length in enumerate(grid):
        place = torch.eye(length, dtype=dtype, device=device).unflatten(0, (length, *[1] * (len(grid) - 1 - axis)))
        codes[..., first : first + length] = place
        first += length
    return codes.flatten(0, -2)


@lru_cache(maxsize=256)
def _lookup(build, *args):  # type: ignore[no-untyped-def]
    with torch.inference_mode(False):  # an inference tensor could not be used in a later training step
        return build(*args)


def cached(build, *args) -> Tensor:  # type: ignore[no-untyped-def]
    """Constants are kept per shape, except while traced or transformed: a tensor of a trace must not outlive it."""
    return build(*args) if observed() else _lookup(build, *args)


def position_scores(q: Tensor, r_freq: Tensor, r_time: Tensor) -> tuple[Tensor, Tensor]:
    """``a_f`` and ``a_t`` of the module's docstring.

    Args:
        q: (B, F_q, T_q, heads, dim).
        r_freq: (F_q, F_k, dim).
        r_time: (T_q, T_k, dim).

    Returns:
        (B, F_q, T_q, heads, F_k) and (B, F_q, T_q, heads, T_k).
    """
    # Rows of one frequency are adjacent in memory, so this product needs no copy of q; einsum would make one.
    a_freq = (q.flatten(2, 3) @ r_freq.transpose(1, 2)).view(*q.shape[:-1], r_freq.shape[1])
    return a_freq, torch.einsum("bfthc,tkc->bfthk", q, r_time)


def filler_for(width: int) -> int:
    """Zeros that bring ``width`` to a multiple of the alignment.

    Where it is traced for any length, there are always at least two: compilers tell none, one and more apart, and each
    would be another graph.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value  # it loads SymPy, which nothing else needs

        if not has_static_value(width):
            return 2 + -(width + 2) % _ALIGNMENT
    return -width % _ALIGNMENT


def attention(q: Tensor, k: Tensor, v: Tensor, r_freq: Tensor, r_time: Tensor, *, kernels: bool = True) -> Tensor:
    """softmax((q k^T + relative) / sqrt(dim)) v, in one fused attention with widened heads.

    Args:
        q: (B, F_q, T_q, heads, dim).
        k, v: (B, F_k, T_k, heads, dim).
        r_freq: (F_q, F_k, dim).
        r_time: (T_q, T_k, dim).
        kernels: use those for GPUs where they fit.

    Returns:
        (B, F_q, T_q, heads, dim), perhaps a view of another layout.
    """
    shape, dim, k_grid = q.shape, q.shape[-1], (k.shape[1], k.shape[2])
    if kernels and cuda.usable(q, dim):
        return cuda.attention(q, k, v, *position_scores(q, r_freq, r_time))[0]
    # Heads come before positions here, so that the concatenations are the only copies.
    parts = [part.permute(0, 3, 1, 2, 4) for part in (q, *position_scores(q, r_freq, r_time))]
    filler = filler_for(dim + sum(k_grid))
    if filler:
        parts.append(parts[0].new_zeros(*parts[0].shape[:-1], filler))
    codes = cached(key_positions, k_grid, sum(k_grid) + filler, k.dtype, k.device)
    k, v = (tensor.permute(0, 3, 1, 2, 4).flatten(2, 3) for tensor in (k, v))
    wide_q = torch.cat(parts, dim=-1).flatten(2, 3)
    wide_k = torch.cat((k, codes.expand(*k.shape[:2], -1, -1)), dim=-1)
    wide_v = F.pad(v, (0, codes.shape[-1]))  # fused kernels want one width
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=dim**-0.5)[..., :dim]
    return heads_last(out.flatten(0, 1), shape)


def heads_last(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(B * heads, F * T, dim) -> ``shape`` (B, F, T, heads, dim), as a view."""
    return x.unflatten(0, (shape[0], shape[3])).unflatten(2, (shape[1], shape[2])).permute(0, 2, 3, 1, 4)
