"""Pooling of queries, keys and values as kernels for GPUs, in Triton: 3x3 depthwise convolution and LayerNorm in one.

Library convolutions of one channel a group in half precision run far below a GPU's memory bandwidth, their weights'
gradients most of all. Here queries, keys and values are read where one product has written them, side by side, and
their gradients go there. A program owns the channels of a head and marches along time: of the nine inputs of an output
it has those of the places before in registers. Forward writes the normalised output and two numbers a row; backward
computes the convolution again, which costs less than reading it.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from mast.fast.cuda.sums import fold

# Places along time of a program; and programs of the backward pass, which share the sums over all places.
SEGMENT = 16
PROGRAMS = 4224
# (Position, head) pairs of a tile of the input's gradient, and its warps.
BACKWARD_INPUT = (16, 4)
# Rows of a pooling's parameters: nine weights, gain and bias.
PARAMETERS = 11


@triton.jit
def _value(x_ptr, f, t, rows, columns, width, channel, real):
    """The input at (f, t), zeros beyond the grid: (DP,) in float32."""
    inside = (f >= 0) & (f < rows) & (t >= 0) & (t < columns)
    return tl.load(x_ptr + (f * columns + t) * width + channel, mask=real & inside, other=0.0).to(tl.float32)


@triton.jit
def _item(item, segments, heads, out_rows):
    """Segment, head, row and sample of a march along time."""
    head = item // segments % heads
    row = item // (segments * heads)
    return item % segments, head, row % out_rows, (row // out_rows).to(tl.int64)


@triton.jit
def _before(part, heads, q_places, k_places):
    """Rows of results of the parts before: queries are part 0, keys 1, values 2."""
    # Not heads.to(...): a size of 1 is a constant, which has no such method.
    return tl.where(part == 0, 0, q_places + (part - 1) * k_places).to(tl.int64) * heads


@triton.jit
def _march(
    x_ptr, p_ptr, out_ptr, mean_ptr, rstd_ptr, item,
    heads, rows, columns, width, out_rows, out_columns, eps,
    SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    segment, head, f, sample = _item(item, tl.cdiv(out_columns, SEGMENT), heads, out_rows)
    channel = tl.arange(0, DP)
    real = channel < D
    x_ptr += sample * rows * columns * width + head * D
    p_ptr += channel
    w0 = tl.load(p_ptr + 0 * D, mask=real, other=0.0)
    w1 = tl.load(p_ptr + 1 * D, mask=real, other=0.0)
    w2 = tl.load(p_ptr + 2 * D, mask=real, other=0.0)
    w3 = tl.load(p_ptr + 3 * D, mask=real, other=0.0)
    w4 = tl.load(p_ptr + 4 * D, mask=real, other=0.0)
    w5 = tl.load(p_ptr + 5 * D, mask=real, other=0.0)
    w6 = tl.load(p_ptr + 6 * D, mask=real, other=0.0)
    w7 = tl.load(p_ptr + 7 * D, mask=real, other=0.0)
    w8 = tl.load(p_ptr + 8 * D, mask=real, other=0.0)
    gain = tl.load(p_ptr + 9 * D, mask=real, other=0.0)
    bias = tl.load(p_ptr + 10 * D, mask=real, other=0.0)
    low, middle, high = f * SF - 1, f * SF, f * SF + 1
    first = segment * SEGMENT
    # Columns a, b, c under the weights' left, middle and right; the stride says which the next place needs again.
    a0 = _value(x_ptr, low, first * ST - 1, rows, columns, width, channel, real)
    a1 = _value(x_ptr, middle, first * ST - 1, rows, columns, width, channel, real)
    a2 = _value(x_ptr, high, first * ST - 1, rows, columns, width, channel, real)
    b0 = _value(x_ptr, low, first * ST, rows, columns, width, channel, real)
    b1 = _value(x_ptr, middle, first * ST, rows, columns, width, channel, real)
    b2 = _value(x_ptr, high, first * ST, rows, columns, width, channel, real)
    for t in range(first, tl.minimum(first + SEGMENT, out_columns)):
        if ST > 2:
            a0 = _value(x_ptr, low, t * ST - 1, rows, columns, width, channel, real)
            a1 = _value(x_ptr, middle, t * ST - 1, rows, columns, width, channel, real)
            a2 = _value(x_ptr, high, t * ST - 1, rows, columns, width, channel, real)
        if ST > 1:
            b0 = _value(x_ptr, low, t * ST, rows, columns, width, channel, real)
            b1 = _value(x_ptr, middle, t * ST, rows, columns, width, channel, real)
            b2 = _value(x_ptr, high, t * ST, rows, columns, width, channel, real)
        c0 = _value(x_ptr, low, t * ST + 1, rows, columns, width, channel, real)
        c1 = _value(x_ptr, middle, t * ST + 1, rows, columns, width, channel, real)
        c2 = _value(x_ptr, high, t * ST + 1, rows, columns, width, channel, real)
        total = a0 * w0 + b0 * w1 + c0 * w2 + a1 * w3 + b1 * w4 + c1 * w5 + a2 * w6 + b2 * w7 + c2 * w8
        mean = tl.sum(total, 0) / D
        centred = tl.where(real, total - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
        out = centred * rstd * gain + bias
        at = ((sample * out_rows + f) * out_columns + t) * heads + head
        tl.store(out_ptr + at * D + channel, out.to(out_ptr.dtype.element_ty), mask=real)
        tl.store(mean_ptr + at, mean)
        tl.store(rstd_ptr + at, rstd)
        if ST == 1:
            a0, a1, a2 = b0, b1, b2
            b0, b1, b2 = c0, c1, c2
        if ST == 2:
            a0, a1, a2 = c0, c1, c2


@triton.jit
def _forward(
    x_ptr, p_ptr, q_ptr, k_ptr, v_ptr, mean_ptr, rstd_ptr,
    samples, heads, rows, columns, width, q_rows, q_columns, k_rows, k_columns, eps,
    QF: tl.constexpr, QT: tl.constexpr, KF: tl.constexpr, KT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """One march along time: of the queries, else of the keys, else of the values."""
    item = tl.program_id(0)
    q_items = samples * heads * q_rows * tl.cdiv(q_columns, SEGMENT)
    k_items = samples * heads * k_rows * tl.cdiv(k_columns, SEGMENT)
    if item < q_items:
        _march(
            x_ptr, p_ptr, q_ptr, mean_ptr, rstd_ptr, item,
            heads, rows, columns, width, q_rows, q_columns, eps, QF, QT, D, DP, SEGMENT,
        )  # fmt: skip
    else:
        part, item, out_ptr = 1, item - q_items, k_ptr
        if item >= k_items:
            part, item, out_ptr = 2, item - k_items, v_ptr
        before = _before(part, samples * heads, q_rows * q_columns, k_rows * k_columns)
        _march(
            x_ptr + part * heads * D, p_ptr + part * 11 * D, out_ptr, mean_ptr + before, rstd_ptr + before, item,
            heads, rows, columns, width, k_rows, k_columns, eps, KF, KT, D, DP, SEGMENT,
        )  # fmt: skip


@triton.jit
def _march_backward(
    x_ptr, p_ptr, mean_ptr, rstd_ptr, grad_ptr, dc_ptr, sums_ptr, program, programs,
    samples, heads, rows, columns, width, out_rows, out_columns,
    SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, DP)
    real = channel < D
    p_ptr += channel
    w0 = tl.load(p_ptr + 0 * D, mask=real, other=0.0)
    w1 = tl.load(p_ptr + 1 * D, mask=real, other=0.0)
    w2 = tl.load(p_ptr + 2 * D, mask=real, other=0.0)
    w3 = tl.load(p_ptr + 3 * D, mask=real, other=0.0)
    w4 = tl.load(p_ptr + 4 * D, mask=real, other=0.0)
    w5 = tl.load(p_ptr + 5 * D, mask=real, other=0.0)
    w6 = tl.load(p_ptr + 6 * D, mask=real, other=0.0)
    w7 = tl.load(p_ptr + 7 * D, mask=real, other=0.0)
    w8 = tl.load(p_ptr + 8 * D, mask=real, other=0.0)
    gain = tl.load(p_ptr + 9 * D, mask=real, other=0.0)
    zero = tl.zeros((DP,), tl.float32)
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
    segments = tl.cdiv(out_columns, SEGMENT)
    items = samples * heads * out_rows * segments
    tiles = tl.cdiv(items, programs)
    for item in range(program * tiles, tl.minimum(program * tiles + tiles, items)):
        segment, head, f, sample = _item(item, segments, heads, out_rows)
        in_ptr = x_ptr + sample * rows * columns * width + head * D
        low, middle, high = f * SF - 1, f * SF, f * SF + 1
        first = segment * SEGMENT
        a0 = _value(in_ptr, low, first * ST - 1, rows, columns, width, channel, real)
        a1 = _value(in_ptr, middle, first * ST - 1, rows, columns, width, channel, real)
        a2 = _value(in_ptr, high, first * ST - 1, rows, columns, width, channel, real)
        b0 = _value(in_ptr, low, first * ST, rows, columns, width, channel, real)
        b1 = _value(in_ptr, middle, first * ST, rows, columns, width, channel, real)
        b2 = _value(in_ptr, high, first * ST, rows, columns, width, channel, real)
        for t in range(first, tl.minimum(first + SEGMENT, out_columns)):
            if ST > 2:
                a0 = _value(in_ptr, low, t * ST - 1, rows, columns, width, channel, real)
                a1 = _value(in_ptr, middle, t * ST - 1, rows, columns, width, channel, real)
                a2 = _value(in_ptr, high, t * ST - 1, rows, columns, width, channel, real)
            if ST > 1:
                b0 = _value(in_ptr, low, t * ST, rows, columns, width, channel, real)
                b1 = _value(in_ptr, middle, t * ST, rows, columns, width, channel, real)
                b2 = _value(in_ptr, high, t * ST, rows, columns, width, channel, real)
            c0 = _value(in_ptr, low, t * ST + 1, rows, columns, width, channel, real)
            c1 = _value(in_ptr, middle, t * ST + 1, rows, columns, width, channel, real)
            c2 = _value(in_ptr, high, t * ST + 1, rows, columns, width, channel, real)
            total = a0 * w0 + b0 * w1 + c0 * w2 + a1 * w3 + b1 * w4 + c1 * w5 + a2 * w6 + b2 * w7 + c2 * w8
            at = ((sample * out_rows + f) * out_columns + t) * heads + head
            rstd = tl.load(rstd_ptr + at)
            normed = tl.where(real, (total - tl.load(mean_ptr + at)) * rstd, 0.0)
            grad = tl.load(grad_ptr + at * D + channel, mask=real, other=0.0).to(tl.float32)
            d_gain += grad * normed
            d_bias += grad
            grad = grad * gain
            dc = (grad - tl.sum(grad, 0) / D - normed * (tl.sum(grad * normed, 0) / D)) * rstd
            dc = tl.where(real, dc, 0.0)
            tl.store(dc_ptr + at * D + channel, dc.to(dc_ptr.dtype.element_ty), mask=real)
            dw0 += dc * a0
            dw1 += dc * b0
            dw2 += dc * c0
            dw3 += dc * a1
            dw4 += dc * b1
            dw5 += dc * c1
            dw6 += dc * a2
            dw7 += dc * b2
            dw8 += dc * c2
            if ST == 1:
                a0, a1, a2 = b0, b1, b2
                b0, b1, b2 = c0, c1, c2
            if ST == 2:
                a0, a1, a2 = c0, c1, c2
    sums = sums_ptr + tl.program_id(0) * 11 * D
    tl.store(sums + channel * 9 + 0, dw0, mask=real)
    tl.store(sums + channel * 9 + 1, dw1, mask=real)
    tl.store(sums + channel * 9 + 2, dw2, mask=real)
    tl.store(sums + channel * 9 + 3, dw3, mask=real)
    tl.store(sums + channel * 9 + 4, dw4, mask=real)
    tl.store(sums + channel * 9 + 5, dw5, mask=real)
    tl.store(sums + channel * 9 + 6, dw6, mask=real)
    tl.store(sums + channel * 9 + 7, dw7, mask=real)
    tl.store(sums + channel * 9 + 8, dw8, mask=real)
    tl.store(sums + 9 * D + channel, d_gain, mask=real)
    tl.store(sums + 10 * D + channel, d_bias, mask=real)


@triton.jit
def _backward(
    x_ptr, p_ptr, mean_ptr, rstd_ptr, dq_ptr, dk_ptr, dv_ptr, dc_ptr, sums_ptr,
    samples, heads, rows, columns, width, q_rows, q_columns, k_rows, k_columns, q_programs, k_programs,
    QF: tl.constexpr, QT: tl.constexpr, KF: tl.constexpr, KT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution's output, and this program's share of those of weights, gain and bias."""
    program = tl.program_id(0)
    if program < q_programs:
        _march_backward(
            x_ptr, p_ptr, mean_ptr, rstd_ptr, dq_ptr, dc_ptr, sums_ptr, program, q_programs,
            samples, heads, rows, columns, width, q_rows, q_columns, QF, QT, D, DP, SEGMENT,
        )  # fmt: skip
    else:
        part, program, grad_ptr = 1, program - q_programs, dk_ptr
        if program >= k_programs:
            part, program, grad_ptr = 2, program - k_programs, dv_ptr
        before = _before(part, samples * heads, q_rows * q_columns, k_rows * k_columns)
        _march_backward(
            x_ptr + part * heads * D, p_ptr + part * 11 * D, mean_ptr + before, rstd_ptr + before, grad_ptr,
            dc_ptr + before * D, sums_ptr, program, k_programs,
            samples, heads, rows, columns, width, k_rows, k_columns, KF, KT, D, DP, SEGMENT,
        )  # fmt: skip


@triton.jit
def _collect(
    dc_ptr, p_ptr, dx_ptr, tile, samples, heads, rows, columns, width, out_rows, out_columns,
    SF: tl.constexpr, ST: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tile * ROWS + tl.arange(0, ROWS)
    place = row // heads
    head = row % heads
    sample = (place // (rows * columns)).to(tl.int64)
    f, t = place // columns % rows, place % columns
    ok = sample < samples
    channel = tl.arange(0, DP)
    real = channel < D
    p_ptr += channel
    total = tl.zeros((ROWS, DP), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            fo, to = f + 1 - i, t + 1 - j
            met = ok & (fo >= 0) & (to >= 0) & (fo % SF == 0) & (to % ST == 0)
            fo, to = fo // SF, to // ST
            met = met & (fo < out_rows) & (to < out_columns)
            at = ((sample * out_rows + fo) * out_columns + to) * heads + head
            mask = met[:, None] & real[None, :]
            dc = tl.load(dc_ptr + at[:, None] * D + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            total += dc * tl.load(p_ptr + (i * 3 + j) * D, mask=real, other=0.0)[None, :]
    at = place.to(tl.int64) * width + head * D
    mask = ok[:, None] & real[None, :]
    tl.store(dx_ptr + at[:, None] + channel[None, :], total.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_input(
    dc_ptr, p_ptr, dx_ptr, samples, heads, rows, columns, width, q_rows, q_columns, k_rows, k_columns,
    QF: tl.constexpr, QT: tl.constexpr, KF: tl.constexpr, KT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the input: each value collects from the outputs that it went into."""
    tiles = tl.cdiv(samples * rows * columns * heads, ROWS)
    part, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    if part == 0:
        _collect(
            dc_ptr, p_ptr, dx_ptr, tile, samples, heads, rows, columns, width, q_rows, q_columns, QF, QT, D, DP, ROWS
        )
    else:
        dc_ptr += _before(part, samples * heads, q_rows * q_columns, k_rows * k_columns) * D
        p_ptr += part * 11 * D
        dx_ptr += part * heads * D
        _collect(
            dc_ptr, p_ptr, dx_ptr, tile, samples, heads, rows, columns, width, k_rows, k_columns, KF, KT, D, DP, ROWS
        )


def _out_grid(x: Tensor, stride: list[int]) -> tuple[int, int]:
    return -(-x.shape[1] // stride[0]), -(-x.shape[2] // stride[1])


def _told(x: Tensor, heads: int, q_stride: list[int], kv_stride: list[int]) -> tuple[int, ...]:
    """Geometry as the kernels are told it."""
    return (x.shape[0], heads, *x.shape[1:], *_out_grid(x, q_stride), *_out_grid(x, kv_stride))


def _sizes(x: Tensor, heads: int, q_stride: list[int], kv_stride: list[int]) -> dict[str, int]:
    """What the kernels are compiled for."""
    strides = dict(zip(("QF", "QT", "KF", "KT"), (*q_stride, *kv_stride), strict=True))
    dim = x.shape[3] // (3 * heads)
    return strides | {"D": dim, "DP": triton.next_power_of_2(dim)}


def _strides(q_stride: list[int], kv_stride: list[int]) -> tuple[list[int], ...]:
    return q_stride, kv_stride, kv_stride


@custom_op("mast::pool", mutates_args=())
def pool(
    x: Tensor, parameters: list[Tensor], heads: int, q_stride: list[int], kv_stride: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """3x3 depthwise convolution with padding 1, then LayerNorm, on each head's channels of queries, keys and values.

    Args:
        x: (B, F, T, 3 * heads * dim): queries, keys and values, side by side.
        parameters: of queries, of keys, of values: weight (dim, 1, 3, 3), which the heads share, gain (dim,) and bias
            (dim,) of the norm.
        q_stride, kv_stride: in (frequency, time).

    Returns:
        Queries, keys and values, each (B, F', T', heads, dim) in the type of ``x``; mean and reciprocal deviation of
        all their rows, (2, rows); and the parameters, (3, 11, dim). All but the first three are float32.
    """
    x = x.contiguous()
    packed = torch.cat([p.reshape(p.shape[0], -1).t() for p in parameters]).float().view(3, PARAMETERS, -1)
    told, constants = _told(x, heads, q_stride, kv_stride), _sizes(x, heads, q_stride, kv_stride)
    shapes = [(x.shape[0], *_out_grid(x, stride), heads, constants["D"]) for stride in _strides(q_stride, kv_stride)]
    q, k, v = (x.new_empty(shape) for shape in shapes)
    kept = x.new_empty((2, sum(math.prod(shape[:4]) for shape in shapes)), dtype=torch.float32)
    items = sum(x.shape[0] * heads * shape[1] * triton.cdiv(shape[2], SEGMENT) for shape in shapes)
    _forward[(items,)](x, packed, q, k, v, kept[0], kept[1], *told, eps, **constants, SEGMENT=SEGMENT, num_warps=1)
    return q, k, v, kept, packed


@custom_op("mast::pool_backward", mutates_args=())
def pool_backward(
    x: Tensor, kept: Tensor, packed: Tensor, grads: list[Tensor], q_stride: list[int], kv_stride: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of `pool`: of its input, and in float32 of its parameters: (3, 11 * dim), weights, gain, bias."""
    x, (dq, dk, dv) = x.contiguous(), (grad.contiguous() for grad in grads)
    heads, dim = dq.shape[3:]
    told, constants = _told(x, heads, q_stride, kv_stride), _sizes(x, heads, q_stride, kv_stride)
    dx, dc = x.new_empty(x.shape), x.new_empty((kept.shape[1], dim))
    items = [x.shape[0] * heads * grad.shape[1] * triton.cdiv(grad.shape[2], SEGMENT) for grad in (dq, dk, dv)]
    programs = [max(1, min(each, PROGRAMS * each // sum(items))) for each in items]
    sums = x.new_empty((sum(programs), PARAMETERS * dim), dtype=torch.float32)
    _backward[(sum(programs),)](
        x, packed, kept[0], kept[1], dq, dk, dv, dc, sums, *told, programs[0], programs[1],
        **constants, SEGMENT=SEGMENT, num_warps=1,
    )  # fmt: skip
    rows, warps = BACKWARD_INPUT
    tiles = triton.cdiv(x.shape[0] * x.shape[1] * x.shape[2] * heads, rows)
    _backward_input[(3 * tiles,)](dc, packed, dx, *told, **constants, ROWS=rows, num_warps=warps)
    return dx, fold(*sums.split(programs)).view(3, -1)


@pool.register_fake
def _(x, parameters, heads, q_stride, kv_stride, eps):  # type: ignore[no-untyped-def]
    dim = parameters[1].shape[0]
    shapes = [(x.shape[0], *_out_grid(x, stride), heads) for stride in _strides(q_stride, kv_stride)]
    kept = x.new_empty((2, sum(math.prod(shape) for shape in shapes)), dtype=torch.float32)
    packed = x.new_empty((3, PARAMETERS, dim), dtype=torch.float32)
    return *[x.new_empty((*shape, dim)) for shape in shapes], kept, packed


@pool_backward.register_fake
def _(x, kept, packed, grads, q_stride, kv_stride):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), packed.new_empty((3, packed.shape[1] * packed.shape[2]))


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, parameters, _, *strides, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates what is kept beside the output
    ctx.save_for_backward(x, *output[3:])
    ctx.strides, ctx.kinds = strides, [(parameter.shape, parameter.dtype) for parameter in parameters]


def _differentiate(ctx, *grads):  # type: ignore[no-untyped-def]
    x, kept, packed = ctx.saved_tensors
    dx, sums = pool_backward(x, kept, packed, list(grads[:3]), *ctx.strides)
    dim = packed.shape[2]
    found = [each for part in sums for each in part.split([9 * dim, dim, dim])]
    return (
        dx,
        [value.view(shape).to(dtype) for value, (shape, dtype) in zip(found, ctx.kinds, strict=True)],
        *[None] * 4,
    )


pool.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula([torch.ops.mast.pool])
def _flops(*args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Of the convolutions."""
    return 2 * 9 * sum(math.prod(shape) for shape in out_shape[:3])


@register_flop_formula([torch.ops.mast.pool_backward])
def _flops_backward(x, kept, packed, grads, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Of their two gradients."""
    return 2 * 2 * 9 * sum(math.prod(shape) for shape in grads)
