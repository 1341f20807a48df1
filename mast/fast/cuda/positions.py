"""Scores of relative positions for the attention kernels, and their gradients: products that copy no queries.

``mast.fast.widened.position_scores`` says what they are. The vectors of all pairs are gathered out of both tables by
one kernel, in the type of the queries and once for each of the batched products that follow. Backward, one kernel sums
up for each row of a table what its pairs got, always in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast.fast.widened import cached
from mast.model import RelativeTable, distance_index

ROWS = 16
# Queries and keys along one axis, and the strides that they were pooled with.
Side = tuple[int, int, int, int]


@triton.jit
def _gather(
    freq_ptr, time_ptr, index_ptr, out_ptr, freq_pairs, freq_rows, rows, heads, keys,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Vectors of the pairs along frequency, for each sample, and of those along time, for each head."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    along_freq = row < freq_rows
    later = row - freq_rows
    pair = tl.where(along_freq, row % freq_pairs, freq_pairs + later // (heads * keys) * keys + later % keys)
    at = tl.load(index_ptr + pair, mask=ok, other=0)
    channel = tl.arange(0, DP)
    real = channel < D
    where = at[:, None] * D + channel[None, :]
    vector = tl.load(freq_ptr + where, mask=(ok & along_freq)[:, None] & real[None, :], other=0.0).to(tl.float32)
    late = (ok & (row >= freq_rows))[:, None] & real[None, :]
    vector += tl.load(time_ptr + where, mask=late, other=0.0).to(tl.float32)
    out = out_ptr + row.to(tl.int64)[:, None] * D + channel[None, :]
    tl.store(out, vector.to(out_ptr.dtype.element_ty), mask=ok[:, None] & real[None, :])


@triton.jit
def _scatter(
    freq_ptr, time_ptr, starts_ptr, order_ptr, out_ptr, freq_table, freq_pairs, samples, heads, keys,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum of the gradients of the pairs of one row of the tables."""
    begin = tl.load(starts_ptr + tl.program_id(0))
    count = tl.load(starts_ptr + tl.program_id(0) + 1) - begin
    along_freq = tl.program_id(0) < freq_table
    copies = tl.where(along_freq, samples, heads)
    channel = tl.arange(0, DP)
    real = channel < D
    total = tl.zeros((ROWS, DP), tl.float32)
    for start in range(0, count * copies, ROWS):
        place = start + tl.arange(0, ROWS)
        ok = place < count * copies
        pair = tl.load(order_ptr + begin + place // copies, mask=ok, other=0)
        copy = place % copies
        late = pair - freq_pairs
        row = tl.where(along_freq, copy * freq_pairs + pair, (late // keys * heads + copy) * keys + late % keys)
        at = row.to(tl.int64)[:, None] * D + channel[None, :]
        mask = ok[:, None] & real[None, :]
        total += tl.load(freq_ptr + at, mask=mask & along_freq, other=0.0).to(tl.float32)
        total += tl.load(time_ptr + at, mask=mask & (tl.program_id(0) >= freq_table), other=0.0).to(tl.float32)
    tl.store(out_ptr + tl.program_id(0) * D + channel, tl.sum(total, 0), mask=real)


class Positions:
    """Which rows of the tables the pairs of a block's queries and keys have, for one size of input.

    Args:
        freq, time: the tables.
        q_grid, k_grid: (F, T) of queries and of keys.
    """

    def __init__(
        self, freq: RelativeTable, time: RelativeTable, q_grid: tuple[int, int], k_grid: tuple[int, int]
    ) -> None:
        self.q_grid, self.k_grid = q_grid, k_grid
        self.rows = [table.covering(max(q, k)) for table, q, k in zip((freq, time), q_grid, k_grid, strict=True)]
        self.tables = (len(self.rows[0]), len(self.rows[1]))
        sides = [
            (q, k, table.q_stride, table.k_stride) for table, q, k in zip((freq, time), q_grid, k_grid, strict=True)
        ]
        self.constants = cached(_pairs, sides[0], sides[1], self.tables, self.rows[0].device)


def _pairs(freq: Side, time: Side, tables: tuple[int, int], device: torch.device) -> Tensor:
    """Row of each pair, then the pairs in the order of their rows, then where each row's pairs begin, in int32."""
    along = [distance_index(*side, size, torch.device("cpu")) for side, size in zip((freq, time), tables, strict=True)]
    index = torch.cat(along)
    ordered = torch.cat((along[0], along[1] + tables[0]))
    counts = torch.bincount(ordered, minlength=sum(tables))
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return torch.cat((index, ordered.argsort(stable=True), starts)).int().to(device)


def _split(positions: "Positions") -> tuple[Tensor, Tensor, Tensor]:
    """Index, order and starts."""
    (f_q, t_q), (f_k, t_k) = positions.q_grid, positions.k_grid
    pairs = f_q * f_k + t_q * t_k
    index, order, starts = positions.constants.split([pairs, pairs, sum(positions.tables) + 1])
    return index, order, starts


def gather(positions: Positions, freq: Tensor, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of all pairs in the type of the queries ``like`` (B, F_q, T_q, heads, dim).

    Returns:
        (B * F_q, F_k, dim) and (T_q * heads, T_k, dim).
    """
    batch, f_q, t_q, heads, dim = like.shape
    f_k, t_k = positions.k_grid
    freq_rows, time_rows = batch * f_q * f_k, t_q * heads * t_k
    out = like.new_empty((freq_rows + time_rows, dim))
    _gather[(triton.cdiv(len(out), ROWS),)](
        freq, time, _split(positions)[0], out, f_q * f_k, freq_rows, len(out), heads, t_k,
        D=dim, DP=triton.next_power_of_2(dim), ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return out[:freq_rows].view(batch * f_q, f_k, dim), out[freq_rows:].view(t_q * heads, t_k, dim)


def _by_freq(x: Tensor) -> Tensor:
    """(B, F, T, heads, n) -> (B * F, T * heads, n)."""
    return x.flatten(2, 3).flatten(0, 1)


def _by_time(x: Tensor) -> Tensor:
    """(B, F, T, heads, n) -> a view (T * heads, B * F, n)."""
    return x.flatten(2, 3).flatten(0, 1).transpose(0, 1)


def scores(q: Tensor, r_freq: Tensor, r_time: Tensor) -> tuple[Tensor, Tensor]:
    """``position_scores`` of ``q`` (B, F_q, T_q, heads, dim) with what `gather` returns."""
    a_freq = torch.bmm(_by_freq(q), r_freq.transpose(1, 2)).view(*q.shape[:-1], -1)
    a_time = q.new_empty((*q.shape[:-1], r_time.shape[1]))
    torch.bmm(_by_time(q), r_time.transpose(1, 2), out=_by_time(a_time))
    return a_freq, a_time


def scores_backward_(
    positions: Positions, dq: Tensor, da_freq: Tensor, da_time: Tensor, q: Tensor, r_freq: Tensor, r_time: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of ``q`` to ``dq``; returns those of the rows of both tables, in float32."""
    _by_freq(dq).baddbmm_(_by_freq(da_freq), r_freq)
    _by_time(dq).baddbmm_(_by_time(da_time), r_time)
    dr_freq = torch.bmm(_by_freq(da_freq).transpose(1, 2), _by_freq(q))
    dr_time = torch.bmm(_by_time(da_time).transpose(1, 2), _by_time(q))
    batch, f_q, _, heads, dim = q.shape
    _, order, starts = _split(positions)
    out = torch.empty((sum(positions.tables), dim), dtype=torch.float32, device=q.device)
    _scatter[(len(out),)](
        dr_freq, dr_time, starts, order, out, positions.tables[0], f_q * positions.k_grid[0], batch, heads,
        positions.k_grid[1], D=dim, DP=triton.next_power_of_2(dim), ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    d_freq, d_time = out.split(positions.tables)
    return d_freq, d_time
