"""Pooling of queries, keys and values as kernels for GPUs, in Triton: 3x3 depthwise convolution and LayerNorm in one.

Library convolutions of one channel a group in half precision run far below a GPU's memory bandwidth, their weights'
gradients most of all. Here each pass reads its tensors once: forward writes the normalised output and two numbers a
row; backward computes the convolution again, which costs less than reading it.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

# (Position, head) pairs of a tile, and warps; of the backward pass also the programs that share the sums over all.
FORWARD = (16, 4)
BACKWARD = (2, 1, 4224)
BACKWARD_INPUT = (16, 4)


@triton.jit
def _place(row, heads, rows, columns):
    """Sample, frequency, time and head of a row (b, f, t, head)."""
    head = row % heads
    place = row // heads
    return place // (rows * columns), place // columns % rows, place % columns, head


@triton.jit
def _patch(x_ptr, sample, f, t, head, ok, channel, i: tl.constexpr, j: tl.constexpr, heads, rows, columns,
           SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """Input values under weight (i, j) of the outputs at (f, t), in float32."""
    fi, ti = f * SF + i - 1, t * ST + j - 1
    inside = ok & (fi >= 0) & (fi < rows) & (ti >= 0) & (ti < columns)
    at = ((sample.to(tl.int64) * rows + fi) * columns + ti) * heads + head
    mask = inside[:, None] & (channel < D)[None, :]
    return tl.load(x_ptr + at[:, None] * D + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    x_ptr, w_ptr, gain_ptr, bias_ptr, out_ptr, mean_ptr, rstd_ptr,
    count, heads, rows, columns, out_rows, out_columns, eps,
    SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < count
    channel = tl.arange(0, DP)
    real = channel < D
    sample, f, t, head = _place(row, heads, out_rows, out_columns)
    total = tl.zeros((ROWS, DP), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            weight = tl.load(w_ptr + channel * 9 + i * 3 + j, mask=real, other=0.0).to(tl.float32)
            x = _patch(x_ptr, sample, f, t, head, ok, channel, i, j, heads, rows, columns, SF, ST, D)
            total += x * weight[None, :]
    mean = tl.sum(total, 1) / D
    centred = tl.where(real[None, :], total - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    gain = tl.load(gain_ptr + channel, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
    out = centred * rstd[:, None] * gain[None, :] + bias[None, :]
    at = row.to(tl.int64)[:, None] * D + channel[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=ok[:, None] & real[None, :])
    tl.store(mean_ptr + row, mean, mask=ok)
    tl.store(rstd_ptr + row, rstd, mask=ok)


@triton.jit
def _backward(
    x_ptr, w_ptr, gain_ptr, mean_ptr, rstd_ptr, grad_ptr, dc_ptr, sums_ptr,
    count, heads, rows, columns, out_rows, out_columns, tiles,
    SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution's output, and this program's share of those of weights, gain and bias."""
    channel = tl.arange(0, DP)
    real = channel < D
    gain = tl.load(gain_ptr + channel, mask=real, other=0.0).to(tl.float32)
    w0 = tl.load(w_ptr + channel * 9 + 0, mask=real, other=0.0).to(tl.float32)
    w1 = tl.load(w_ptr + channel * 9 + 1, mask=real, other=0.0).to(tl.float32)
    w2 = tl.load(w_ptr + channel * 9 + 2, mask=real, other=0.0).to(tl.float32)
    w3 = tl.load(w_ptr + channel * 9 + 3, mask=real, other=0.0).to(tl.float32)
    w4 = tl.load(w_ptr + channel * 9 + 4, mask=real, other=0.0).to(tl.float32)
    w5 = tl.load(w_ptr + channel * 9 + 5, mask=real, other=0.0).to(tl.float32)
    w6 = tl.load(w_ptr + channel * 9 + 6, mask=real, other=0.0).to(tl.float32)
    w7 = tl.load(w_ptr + channel * 9 + 7, mask=real, other=0.0).to(tl.float32)
    w8 = tl.load(w_ptr + channel * 9 + 8, mask=real, other=0.0).to(tl.float32)
    zero = tl.zeros((ROWS, DP), tl.float32)
    dw0 = zero
    dw1 = zero
    dw2 = zero
    dw3 = zero
    dw4 = zero
    dw5 = zero
    dw6 = zero
    dw7 = zero
    dw8 = zero
    d_gain = zero
    d_bias = zero
    for tile in range(tl.program_id(0) * tiles, (tl.program_id(0) + 1) * tiles):
        row = tile * ROWS + tl.arange(0, ROWS)
        ok = row < count
        sample, f, t, head = _place(row, heads, out_rows, out_columns)
        x0 = _patch(x_ptr, sample, f, t, head, ok, channel, 0, 0, heads, rows, columns, SF, ST, D)
        x1 = _patch(x_ptr, sample, f, t, head, ok, channel, 0, 1, heads, rows, columns, SF, ST, D)
        x2 = _patch(x_ptr, sample, f, t, head, ok, channel, 0, 2, heads, rows, columns, SF, ST, D)
        x3 = _patch(x_ptr, sample, f, t, head, ok, channel, 1, 0, heads, rows, columns, SF, ST, D)
        x4 = _patch(x_ptr, sample, f, t, head, ok, channel, 1, 1, heads, rows, columns, SF, ST, D)
        x5 = _patch(x_ptr, sample, f, t, head, ok, channel, 1, 2, heads, rows, columns, SF, ST, D)
        x6 = _patch(x_ptr, sample, f, t, head, ok, channel, 2, 0, heads, rows, columns, SF, ST, D)
        x7 = _patch(x_ptr, sample, f, t, head, ok, channel, 2, 1, heads, rows, columns, SF, ST, D)
        x8 = _patch(x_ptr, sample, f, t, head, ok, channel, 2, 2, heads, rows, columns, SF, ST, D)
        total = x0 * w0[None, :] + x1 * w1[None, :] + x2 * w2[None, :] + x3 * w3[None, :] + x4 * w4[None, :]
        total += x5 * w5[None, :] + x6 * w6[None, :] + x7 * w7[None, :] + x8 * w8[None, :]
        mask = ok[:, None] & real[None, :]
        mean = tl.load(mean_ptr + row, mask=ok, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=ok, other=0.0)
        normed = tl.where(mask, (total - mean[:, None]) * rstd[:, None], 0.0)
        at = row.to(tl.int64)[:, None] * D + channel[None, :]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        d_gain += grad * normed
        d_bias += grad
        grad = grad * gain[None, :]
        inner = tl.sum(grad * normed, 1) / D
        dc = (grad - (tl.sum(grad, 1) / D)[:, None] - normed * inner[:, None]) * rstd[:, None]
        dc = tl.where(mask, dc, 0.0)
        tl.store(dc_ptr + at, dc.to(dc_ptr.dtype.element_ty), mask=mask)
        dw0 += dc * x0
        dw1 += dc * x1
        dw2 += dc * x2
        dw3 += dc * x3
        dw4 += dc * x4
        dw5 += dc * x5
        dw6 += dc * x6
        dw7 += dc * x7
        dw8 += dc * x8
    sums = sums_ptr + tl.program_id(0) * 11 * D + channel
    tl.store(sums + 0 * D, tl.sum(dw0, 0), mask=real)
    tl.store(sums + 1 * D, tl.sum(dw1, 0), mask=real)
    tl.store(sums + 2 * D, tl.sum(dw2, 0), mask=real)
    tl.store(sums + 3 * D, tl.sum(dw3, 0), mask=real)
    tl.store(sums + 4 * D, tl.sum(dw4, 0), mask=real)
    tl.store(sums + 5 * D, tl.sum(dw5, 0), mask=real)
    tl.store(sums + 6 * D, tl.sum(dw6, 0), mask=real)
    tl.store(sums + 7 * D, tl.sum(dw7, 0), mask=real)
    tl.store(sums + 8 * D, tl.sum(dw8, 0), mask=real)
    tl.store(sums + 9 * D, tl.sum(d_gain, 0), mask=real)
    tl.store(sums + 10 * D, tl.sum(d_bias, 0), mask=real)


@triton.jit
def _backward_input(
    dc_ptr, w_ptr, dx_ptr, count, heads, rows, columns, out_rows, out_columns,
    SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the input: each value collects from the outputs that it went into."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < count
    channel = tl.arange(0, DP)
    real = channel < D
    sample, f, t, head = _place(row, heads, rows, columns)
    total = tl.zeros((ROWS, DP), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            fo, to = f + 1 - i, t + 1 - j
            met = ok & (fo >= 0) & (to >= 0) & (fo % SF == 0) & (to % ST == 0)
            fo, to = fo // SF, to // ST
            met = met & (fo < out_rows) & (to < out_columns)
            at = ((sample.to(tl.int64) * out_rows + fo) * out_columns + to) * heads + head
            mask = met[:, None] & real[None, :]
            dc = tl.load(dc_ptr + at[:, None] * D + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            total += dc * tl.load(w_ptr + channel * 9 + i * 3 + j, mask=real, other=0.0).to(tl.float32)[None, :]
    at = row.to(tl.int64)[:, None] * D + channel[None, :]
    tl.store(dx_ptr + at, total.to(dx_ptr.dtype.element_ty), mask=ok[:, None] & real[None, :])


def _out_grid(x: Tensor, stride: list[int]) -> tuple[int, int]:
    return -(-x.shape[1] // stride[0]), -(-x.shape[2] // stride[1])


def _constants(dim: int, stride: list[int], rows: int, warps: int) -> dict[str, int]:
    sizes = {"SF": stride[0], "ST": stride[1], "D": dim, "DP": triton.next_power_of_2(dim)}
    return sizes | {"ROWS": rows, "num_warps": warps}


@custom_op("mast::pool", mutates_args=())
def pool(
    x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, heads: int, stride: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """3x3 depthwise convolution with padding 1, then LayerNorm, both on each head's channels.

    Args:
        x: (B, F, T, heads * dim).
        weight: (dim, 1, 3, 3), shared by the heads.
        gain, bias: (dim,), of the norm.
        stride: in (frequency, time).

    Returns:
        (B, F', T', heads, dim) in the type of ``x``; mean and reciprocal deviation of each of its rows, float32.
    """
    x, weight = x.contiguous(), weight.contiguous()
    dim = x.shape[-1] // heads
    grid = _out_grid(x, stride)
    out = x.new_empty((x.shape[0], *grid, heads, dim))
    mean = x.new_empty(out.shape[:-1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    count = mean.numel()
    _forward[(triton.cdiv(count, FORWARD[0]),)](
        x, weight, gain, bias, out, mean, rstd, count, heads, x.shape[1], x.shape[2], *grid, eps,
        **_constants(dim, stride, *FORWARD),
    )  # fmt: skip
    return out, mean, rstd


@custom_op("mast::pool_backward", mutates_args=())
def pool_backward(
    x: Tensor, weight: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor, stride: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of `pool`: of its input, and in float32 of its parameters, (11, dim): nine weights, gain and bias."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    heads, dim = grad.shape[3], grad.shape[4]
    grid, count = (grad.shape[1], grad.shape[2]), mean.numel()
    rows, warps, programs = BACKWARD
    tiles = triton.cdiv(triton.cdiv(count, rows), programs)
    programs = triton.cdiv(triton.cdiv(count, rows), tiles)
    dc, dx = grad.new_empty(grad.shape), x.new_empty(x.shape)
    sums = x.new_empty((programs, 11, dim), dtype=torch.float32)
    _backward[(programs,)](
        x, weight, gain, mean, rstd, grad, dc, sums, count, heads, x.shape[1], x.shape[2], *grid, tiles,
        **_constants(dim, stride, rows, warps),
    )  # fmt: skip
    values = x.numel() // dim
    _backward_input[(triton.cdiv(values, BACKWARD_INPUT[0]),)](
        dc, weight, dx, values, heads, x.shape[1], x.shape[2], *grid, **_constants(dim, stride, *BACKWARD_INPUT)
    )
    return dx, sums.sum(0)


@pool.register_fake
def _(x, weight, gain, bias, heads, stride, eps):  # type: ignore[no-untyped-def]
    shape = (x.shape[0], *_out_grid(x, stride), heads)
    mean, rstd = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return x.new_empty((*shape, x.shape[-1] // heads)), mean, rstd


@pool_backward.register_fake
def _(x, weight, gain, mean, rstd, grad, stride):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty((11, grad.shape[-1]), dtype=torch.float32)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, gain, bias, _, stride, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates what is kept beside the output
    ctx.save_for_backward(x, weight, gain, *output[1:])
    ctx.stride, ctx.types = stride, (weight.dtype, gain.dtype, bias.dtype)


def _differentiate(ctx, grad, *_):  # type: ignore[no-untyped-def]
    dx, sums = pool_backward(*ctx.saved_tensors, grad, ctx.stride)
    parameters = sums[:9].t().reshape(-1, 1, 3, 3), sums[9], sums[10]
    return dx, *(part.to(dtype) for part, dtype in zip(parameters, ctx.types, strict=True)), None, None, None


pool.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula([torch.ops.mast.pool, torch.ops.mast.pool_backward])
def _flops(x, weight, gain, *rest, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Of the convolution; backward, its two gradients."""
    forward = len(out_shape) == 3
    return 2 * 9 * math.prod(out_shape[0]) if forward else 2 * 2 * 9 * math.prod(rest[2])
