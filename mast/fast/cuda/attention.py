"""Attention with decomposed relative positions as one kernel for GPUs, in Triton.

Flash attention (Dao et al. 2022; Dao 2023) whose scores are ``q . k + a_f[f_k] + a_t[t_k]``, with the terms of
`mast.fast.widened`. A tile of keys lies within one row of the keys' grid: all its keys have one frequency, and their
times are the same in every row. So ``a_f`` is one column for a tile, ``a_t`` one tile for all rows, and neither the
heads are widened nor a bias is written out. Backward, sums over a tile's columns and over the rows give the gradients
of both, without atomic additions.

It takes half precision on CUDA. Everything else is served by `mast.fast.widened.attention`.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

LOG2E = 1.4426950408889634


@triton.jit
def _load(base, rows, row_mask, row_stride, D: tl.constexpr, START: tl.constexpr, PART: tl.constexpr):
    """Channels START to START + PART of some rows, zeros beyond D and for masked rows: (rows, PART)."""
    columns = START + tl.arange(0, PART)
    mask = row_mask[:, None]
    if START + PART > D:
        mask = mask & (columns < D)[None, :]
    return tl.load(base + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store(base, rows, row_mask, row_stride, value, D: tl.constexpr, START: tl.constexpr, PART: tl.constexpr):
    columns = START + tl.arange(0, PART)
    mask = row_mask[:, None]
    if START + PART > D:
        mask = mask & (columns < D)[None, :]
    tl.store(base + rows[:, None] * row_stride + columns[None, :], value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, f_ptr, t_ptr, out_ptr, lse_ptr, sum_ptr,
    heads, queries, rows, columns, scale,
    RESIDUAL: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Output and the scores' log2-sum-exp2 of M queries of one head; the sum of queries and output, if asked for."""
    tiles = tl.cdiv(queries, M)
    head = tl.program_id(0) // tiles
    batch = (head // heads).to(tl.int64)
    head = head % heads
    stride = heads * D
    keys = rows * columns
    q_ptr += batch * queries * stride + head * D
    out_ptr += batch * queries * stride + head * D
    sum_ptr += batch * queries * stride + head * D
    k_ptr += batch * keys * stride + head * D
    v_ptr += batch * keys * stride + head * D
    f_ptr += batch * queries * heads * rows + head * rows
    t_ptr += batch * queries * heads * columns + head * columns
    lse_ptr += (batch * heads + head) * queries

    m = tl.program_id(0) % tiles * M + tl.arange(0, M)
    m_ok = m < queries
    q1 = _load(q_ptr, m, m_ok, stride, D, 0, D1)
    out1 = tl.zeros((M, D1), tl.float32)
    if D2:
        q2 = _load(q_ptr, m, m_ok, stride, D, D1, D2)
        out2 = tl.zeros((M, D2), tl.float32)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    for start in range(0, columns, N):
        n = start + tl.arange(0, N)
        n_ok = n < columns
        a_t = tl.load(
            t_ptr + m[:, None] * (heads * columns) + n[None, :], mask=m_ok[:, None] & n_ok[None, :], other=0.0
        )
        a_t = tl.where(n_ok[None, :], a_t.to(tl.float32) * scale, float("-inf"))
        for row in range(0, rows):
            a_f = tl.load(f_ptr + m * (heads * rows) + row, mask=m_ok, other=0.0).to(tl.float32) * scale
            key = row * columns + n
            s = tl.dot(q1, tl.trans(_load(k_ptr, key, n_ok, stride, D, 0, D1)))
            if D2:
                s = tl.dot(q2, tl.trans(_load(k_ptr, key, n_ok, stride, D, D1, D2)), s)
            s = s * scale + (a_t + a_f[:, None])
            higher = tl.maximum(highest, tl.max(s, 1))
            shrink = tl.exp2(highest - higher)
            p = tl.exp2(s - higher[:, None])
            total = total * shrink + tl.sum(p, 1)
            highest = higher
            weights = p.to(q1.dtype)
            out1 = tl.dot(weights, _load(v_ptr, key, n_ok, stride, D, 0, D1), out1 * shrink[:, None])
            if D2:
                out2 = tl.dot(weights, _load(v_ptr, key, n_ok, stride, D, D1, D2), out2 * shrink[:, None])
    out1 = out1 / total[:, None]
    _store(out_ptr, m, m_ok, stride, out1, D, 0, D1)
    if RESIDUAL:
        q1 = _load(q_ptr, m, m_ok, stride, D, 0, D1)  # again: through the loop there are no registers to keep it in
        _store(sum_ptr, m, m_ok, stride, out1 + q1.to(tl.float32), D, 0, D1)
    if D2:
        out2 = out2 / total[:, None]
        _store(out_ptr, m, m_ok, stride, out2, D, D1, D2)
        if RESIDUAL:
            q2 = _load(q_ptr, m, m_ok, stride, D, D1, D2)
            _store(sum_ptr, m, m_ok, stride, out2 + q2.to(tl.float32), D, D1, D2)
    tl.store(lse_ptr + m, highest + tl.log2(total), mask=m_ok)


@triton.jit
def _backward_queries(
    q_ptr, k_ptr, v_ptr, f_ptr, t_ptr, out_ptr, lse_ptr, dout_ptr, dq_ptr, df_ptr, dt_ptr, delta_ptr,
    heads, queries, rows, columns, scale, inverse,
    RESIDUAL: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, R: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of M queries and of their position terms; also ``delta``, what the keys' gradients need of them.

    With the residual connection, the gradient of the result is one of the queries, too.
    """
    tiles = tl.cdiv(queries, M)
    head = tl.program_id(0) // tiles
    batch = (head // heads).to(tl.int64)
    head = head % heads
    stride = heads * D
    keys = rows * columns
    offset = batch * queries * stride + head * D
    k_ptr += batch * keys * stride + head * D
    v_ptr += batch * keys * stride + head * D
    f_offset = batch * queries * heads * rows + head * rows
    t_offset = batch * queries * heads * columns + head * columns
    l_offset = (batch * heads + head) * queries

    m = tl.program_id(0) % tiles * M + tl.arange(0, M)
    m_ok = m < queries
    q1 = _load(q_ptr + offset, m, m_ok, stride, D, 0, D1)
    g1 = _load(dout_ptr + offset, m, m_ok, stride, D, 0, D1)
    o1 = _load(out_ptr + offset, m, m_ok, stride, D, 0, D1)
    delta = tl.sum(g1.to(tl.float32) * o1.to(tl.float32), 1)
    dq1 = tl.zeros((M, D1), tl.float32)
    if D2:
        q2 = _load(q_ptr + offset, m, m_ok, stride, D, D1, D2)
        g2 = _load(dout_ptr + offset, m, m_ok, stride, D, D1, D2)
        o2 = _load(out_ptr + offset, m, m_ok, stride, D, D1, D2)
        delta += tl.sum(g2.to(tl.float32) * o2.to(tl.float32), 1)
        dq2 = tl.zeros((M, D2), tl.float32)
    tl.store(delta_ptr + l_offset + m, delta, mask=m_ok)
    lse = tl.load(lse_ptr + l_offset + m, mask=m_ok, other=0.0)
    row_of = tl.arange(0, R)
    da_f = tl.zeros((M, R), tl.float32)
    for start in range(0, columns, N):
        n = start + tl.arange(0, N)
        n_ok = n < columns
        t_mask = m_ok[:, None] & n_ok[None, :]
        t_at = t_offset + m[:, None] * (heads * columns) + n[None, :]
        a_t = tl.load(t_ptr + t_at, mask=t_mask, other=0.0)
        a_t = tl.where(n_ok[None, :], a_t.to(tl.float32) * scale, float("-inf")) - lse[:, None]
        da_t = tl.zeros((M, N), tl.float32)
        for row in range(0, rows):
            a_f = tl.load(f_ptr + f_offset + m * (heads * rows) + row, mask=m_ok, other=0.0).to(tl.float32) * scale
            key = row * columns + n
            k1 = _load(k_ptr, key, n_ok, stride, D, 0, D1)
            s = tl.dot(q1, tl.trans(k1))
            dp = tl.dot(g1, tl.trans(_load(v_ptr, key, n_ok, stride, D, 0, D1)))
            if D2:
                k2 = _load(k_ptr, key, n_ok, stride, D, D1, D2)
                s = tl.dot(q2, tl.trans(k2), s)
                dp = tl.dot(g2, tl.trans(_load(v_ptr, key, n_ok, stride, D, D1, D2)), dp)
            p = tl.exp2(s * scale + (a_t + a_f[:, None]))
            ds = p * (dp - delta[:, None])
            da_t += ds
            da_f += tl.where(row_of[None, :] == row, tl.sum(ds, 1)[:, None], 0.0)
            half = ds.to(q1.dtype)
            dq1 = tl.dot(half, k1, dq1)
            if D2:
                dq2 = tl.dot(half, k2, dq2)
        tl.store(dt_ptr + t_at, (da_t * inverse).to(dt_ptr.dtype.element_ty), mask=t_mask)
    dq1 = dq1 * inverse
    if RESIDUAL:  # read again: through the loop there are no registers to keep it in
        dq1 += _load(dout_ptr + offset, m, m_ok, stride, D, 0, D1).to(tl.float32)
    _store(dq_ptr + offset, m, m_ok, stride, dq1, D, 0, D1)
    if D2:
        dq2 = dq2 * inverse
        if RESIDUAL:
            dq2 += _load(dout_ptr + offset, m, m_ok, stride, D, D1, D2).to(tl.float32)
        _store(dq_ptr + offset, m, m_ok, stride, dq2, D, D1, D2)
    f_at = df_ptr + f_offset + m[:, None] * (heads * rows) + row_of[None, :]
    tl.store(f_at, (da_f * inverse).to(df_ptr.dtype.element_ty), mask=m_ok[:, None] & (row_of < rows)[None, :])


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, f_ptr, t_ptr, lse_ptr, dout_ptr, delta_ptr, dk_ptr, dv_ptr,
    heads, queries, rows, columns, scale, inverse,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of up to N keys and values of one row."""
    tiles = tl.cdiv(columns, N)
    head = tl.program_id(0) // (rows * tiles)
    batch = (head // heads).to(tl.int64)
    head = head % heads
    stride = heads * D
    row = tl.program_id(0) // tiles % rows
    n = tl.program_id(0) % tiles * N + tl.arange(0, N)
    n_ok = n < columns
    key = row * columns + n
    q_ptr += batch * queries * stride + head * D
    dout_ptr += batch * queries * stride + head * D
    k_offset = batch * rows * columns * stride + head * D
    f_ptr += batch * queries * heads * rows + head * rows + row
    t_ptr += batch * queries * heads * columns + head * columns
    lse_ptr += (batch * heads + head) * queries
    delta_ptr += (batch * heads + head) * queries

    k1 = _load(k_ptr + k_offset, key, n_ok, stride, D, 0, D1)
    v1 = _load(v_ptr + k_offset, key, n_ok, stride, D, 0, D1)
    dk1 = tl.zeros((N, D1), tl.float32)
    dv1 = tl.zeros((N, D1), tl.float32)
    if D2:
        k2 = _load(k_ptr + k_offset, key, n_ok, stride, D, D1, D2)
        v2 = _load(v_ptr + k_offset, key, n_ok, stride, D, D1, D2)
        dk2 = tl.zeros((N, D2), tl.float32)
        dv2 = tl.zeros((N, D2), tl.float32)
    for start in range(0, queries, M):
        m = start + tl.arange(0, M)
        m_ok = m < queries
        lse = tl.load(lse_ptr + m, mask=m_ok, other=float("inf"))  # so that masked queries weigh nothing
        delta = tl.load(delta_ptr + m, mask=m_ok, other=0.0)
        bias = tl.load(f_ptr + m * (heads * rows), mask=m_ok, other=0.0).to(tl.float32) * scale - lse
        a_t = tl.load(
            t_ptr + m[None, :] * (heads * columns) + n[:, None], mask=m_ok[None, :] & n_ok[:, None], other=0.0
        )
        q1 = _load(q_ptr, m, m_ok, stride, D, 0, D1)
        g1 = _load(dout_ptr, m, m_ok, stride, D, 0, D1)
        s = tl.dot(k1, tl.trans(q1))
        dp = tl.dot(v1, tl.trans(g1))
        if D2:
            q2 = _load(q_ptr, m, m_ok, stride, D, D1, D2)
            g2 = _load(dout_ptr, m, m_ok, stride, D, D1, D2)
            s = tl.dot(k2, tl.trans(q2), s)
            dp = tl.dot(v2, tl.trans(g2), dp)
        p = tl.exp2(s * scale + (a_t.to(tl.float32) * scale + bias[None, :]))
        half = p.to(q1.dtype)
        dv1 = tl.dot(half, g1, dv1)
        ds = (p * (dp - delta[None, :])).to(q1.dtype)
        dk1 = tl.dot(ds, q1, dk1)
        if D2:
            dv2 = tl.dot(half, g2, dv2)
            dk2 = tl.dot(ds, q2, dk2)
    _store(dk_ptr + k_offset, key, n_ok, stride, dk1 * inverse, D, 0, D1)
    _store(dv_ptr + k_offset, key, n_ok, stride, dv1, D, 0, D1)
    if D2:
        _store(dk_ptr + k_offset, key, n_ok, stride, dk2 * inverse, D, D1, D2)
        _store(dv_ptr + k_offset, key, n_ok, stride, dv2, D, D1, D2)


class Tile(NamedTuple):
    """How a kernel is cut: queries and keys at a time, warps, and stages of the pipeline of loads."""

    queries: int
    keys: int
    warps: int
    stages: int


LEAST_MEMORY = 160 * 1024  # bytes that blocks share; TILES take up to 128 KiB, with 128 channels
TILES = {"forward": Tile(64, 64, 4, 3), "queries": Tile(64, 64, 4, 3), "keys": Tile(32, 64, 4, 3)}
# Without Hopper's products, which read shared memory, larger tiles spill registers. Devices that came later and have
# less shared memory than Hopper, as GeForce RTX 50, could not start them.
SMALL_TILES = {"forward": Tile(64, 32, 4, 3), "queries": Tile(64, 32, 4, 3), "keys": Tile(16, 64, 4, 2)}


@lru_cache
def needs_small_tiles(device: torch.device) -> bool:
    """Whether ``device`` has other products, or less shared memory, than `TILES` are for."""
    if device.type != "cuda":
        return False
    told = torch.cuda.get_device_properties(device)
    return told.major < 9 or told.shared_memory_per_block_optin < LEAST_MEMORY  # type: ignore[attr-defined]


def _tile(kernel: str, device: torch.device, columns: int) -> Tile:
    """The tile of ``kernel`` for rows of ``columns`` keys."""
    tile = (SMALL_TILES if needs_small_tiles(device) else TILES)[kernel]
    return tile._replace(keys=next((size for size in (16, 32) if columns <= size < tile.keys), tile.keys))


def _sizes(dim: int, tile: Tile) -> dict[str, int]:
    """What a kernel is compiled for. Channels are one power of two, or two where that is less, as 64 + 32 for 96.

    Only compared with numbers, so that a size that is not known yet when this is compiled needs no code of its own.
    """
    whole = next(size for size in (16, 32, 64, 128) if dim <= size)
    rest = next(size for size in (0, 16, 32, 64) if dim - whole // 2 <= size)
    first, second = (whole // 2, rest) if whole >= 32 and 0 < rest < whole // 2 else (whole, 0)
    sizes = {"D": dim, "D1": first, "D2": second, "M": tile.queries, "N": tile.keys}
    return sizes | {"num_warps": tile.warps, "num_stages": tile.stages}


def attend(
    q: Tensor, k: Tensor, v: Tensor, a_freq: Tensor, a_time: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `attention` returns, and with ``residual`` the sum of queries and result (else the result again)."""
    q, k, v, a_freq, a_time = (x.contiguous() for x in (q, k, v, a_freq, a_time))
    batch, heads, queries = q.shape[0], q.shape[3], q.shape[1] * q.shape[2]
    rows, columns = k.shape[1], k.shape[2]
    out = q.new_empty(q.shape)
    total = q.new_empty(q.shape) if residual else out
    lse = q.new_empty((batch, heads, queries), dtype=torch.float32)
    scale = LOG2E / math.sqrt(q.shape[-1])
    tile = _tile("forward", q.device, columns)
    _forward[(batch * heads * triton.cdiv(queries, tile.queries),)](
        q, k, v, a_freq, a_time, out, lse, total, heads, queries, rows, columns, scale,
        RESIDUAL=residual, **_sizes(q.shape[-1], tile),
    )  # fmt: skip
    return out, lse, total


def attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a_freq: Tensor,
    a_time: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs of `attend`, from that of its result, or of the sum with ``residual``."""
    q, k, v, a_freq, a_time, out, grad = (x.contiguous() for x in (q, k, v, a_freq, a_time, out, grad))
    batch, heads, queries, dim = q.shape[0], q.shape[3], q.shape[1] * q.shape[2], q.shape[-1]
    rows, columns = k.shape[1], k.shape[2]
    dq, dk, dv, df, dt = (x.new_empty(x.shape) for x in (q, k, v, a_freq, a_time))
    delta = torch.empty_like(lse)
    scale, inverse = LOG2E / math.sqrt(dim), 1 / math.sqrt(dim)
    tile = _tile("queries", q.device, columns)
    _backward_queries[(batch * heads * triton.cdiv(queries, tile.queries),)](
        q, k, v, a_freq, a_time, out, lse, grad, dq, df, dt, delta, heads, queries, rows, columns, scale, inverse,
        RESIDUAL=residual, **_sizes(dim, tile), R=triton.next_power_of_2(rows),
    )  # fmt: skip
    tile = _tile("keys", q.device, columns)
    _backward_keys[(batch * heads * rows * triton.cdiv(columns, tile.keys),)](
        q, k, v, a_freq, a_time, lse, grad, delta, dk, dv, heads, queries, rows, columns, scale, inverse,
        **_sizes(dim, tile),
    )  # fmt: skip
    return dq, dk, dv, df, dt


@custom_op("mast::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, a_freq: Tensor, a_time: Tensor) -> tuple[Tensor, Tensor]:
    """softmax((q k^T + a_freq + a_time) / sqrt(dim)) v, and the scores' log2-sum-exp2.

    Args:
        q: (B, F_q, T_q, heads, dim), in half precision like all others.
        k, v: (B, F_k, T_k, heads, dim).
        a_freq: (B, F_q, T_q, heads, F_k).
        a_time: (B, F_q, T_q, heads, T_k).

    Returns:
        (B, F_q, T_q, heads, dim) and (B, heads, F_q * T_q) in float32.
    """
    return attend(q, k, v, a_freq, a_time, False)[:2]


@custom_op("mast::attention_backward", mutates_args=())
def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, a_freq: Tensor, a_time: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs of `attention`."""
    return attend_backward(q, k, v, a_freq, a_time, out, lse, grad, False)


@attention.register_fake
def _(q, k, v, a_freq, a_time):  # type: ignore[no-untyped-def]
    lse = q.new_empty((q.shape[0], q.shape[3], q.shape[1] * q.shape[2]), dtype=torch.float32)
    return q.new_empty(q.shape), lse


@attention_backward.register_fake
def _(q, k, v, a_freq, a_time, out, lse, grad):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v, a_freq, a_time))


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)  # nobody differentiates what is kept beside the output
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx, grad, _):  # type: ignore[no-untyped-def]
    return attention_backward(*ctx.saved_tensors, grad)


attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula([torch.ops.mast.attention, torch.ops.mast.attention_backward])
def _flops(q, k, v, a_freq, a_time, *saved, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Two products forward and the five of flash attention's backward pass; the terms count where they are made."""
    batch, f_q, t_q, heads, dim = q
    product = 2 * batch * heads * f_q * t_q * k[1] * k[2] * dim
    return (5 if saved else 2) * product
