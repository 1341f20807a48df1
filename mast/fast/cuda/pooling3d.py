"""Pooling of a video's queries, keys and values as kernels for GPUs: 3x3x3 depthwise convolution and LayerNorm in one.

As ``mast.fast.cuda.pooling``, for MViTv2 (Li et al. 2022), whose tokens lie on a grid of time, height and width behind
a class token, which is normalised alone. Strides are along height and width only. So a program owns the channels of a
head at one place and marches along time: a plane of nine inputs is read once and goes into three outputs, whose sums
are in registers. Queries, keys and values share every launch: their strides decide addresses alone.
"""

# Tuples grow within kernels:
# mypy: disable-error-code="assignment"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from mast.fast.cuda.sums import fold

# Programs of the backward pass that share the sums over all places.
PROGRAMS = 2112
# Rows of a pooling's parameters: 27 weights, gain and bias.
PARAMETERS = 29


@triton.jit
def _part(part, q_height, q_width, q_step, k_height, k_width, k_step):
    """Grid and stride of the queries (0), keys (1) or values (2)."""
    height, width, step = k_height, k_width, k_step
    if part == 0:
        height, width, step = q_height, q_width, q_step
    return height, width, step


@triton.jit
def _rows_before(part, batch, heads, frames, q_height, q_width, k_height, k_width):
    """Rows of results of the parts before."""
    q_rows, k_rows = 1 + frames * q_height * q_width, 1 + frames * k_height * k_width
    # Not heads.to(...): a size of 1 is a constant, which has no such method.
    return tl.where(part == 0, 0, q_rows + tl.where(part == 1, 0, k_rows)).to(tl.int64) * (batch * heads)


@triton.jit
def _vectors(p_ptr, channel, real, START: tl.constexpr, D: tl.constexpr):
    """Nine weights of each channel."""
    found = ()
    for i in tl.static_range(9):
        found += (tl.load(p_ptr + (START + i) * D + channel, mask=real, other=0.0),)
    return found


@triton.jit
def _plane(x_ptr, t, y, x, frames, height, width, stride, channel, real):
    """The nine inputs around (t, y, x) in its frame, zeros beyond the grid."""
    found = ()
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            row, column = y + i - 1, x + j - 1
            inside = (t < frames) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = (1 + (t * height + row) * width + column) * stride
            found += (tl.load(x_ptr + at + channel, mask=real & inside, other=0.0).to(tl.float32),)
    return found


@triton.jit
def _collected(dc_ptr, t, y, x, frames, height, width, step, channel, real, D: tl.constexpr):
    """Gradients of the outputs in frame t that the input at (y, x) went into, in the order of the weights."""
    found = ()
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            row, column = y + 1 - i, x + 1 - j
            met = (t < frames) & (row >= 0) & (column >= 0) & (row % step == 0) & (column % step == 0)
            row, column = row // step, column // step
            met = met & (row < height) & (column < width)
            at = (1 + (t * height + row) * width + column) * D
            found += (tl.load(dc_ptr + at + channel, mask=real & met, other=0.0).to(tl.float32),)
    return found


@triton.jit
def _dot(weights, values):
    total = weights[0] * values[0]
    for i in tl.static_range(1, 9):
        total += weights[i] * values[i]
    return total


@triton.jit
def _add(totals, values, factor):
    found = ()
    for i in tl.static_range(9):
        found += (totals[i] + values[i] * factor,)
    return found


@triton.jit
def _zeros(DP: tl.constexpr):
    found = ()
    for _ in tl.static_range(9):
        found += (tl.zeros((DP,), tl.float32),)
    return found


@triton.jit
def _forward(
    x_ptr, p_ptr, q_ptr, k_ptr, v_ptr, mean_ptr, rstd_ptr,
    batch, heads, frames, height, width, q_height, q_width, q_step, k_height, k_width, k_step, eps,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """One place, or the class token, of one head."""
    item = tl.program_id(0)
    q_items = batch * heads * (q_height * q_width + 1)
    k_items = batch * heads * (k_height * k_width + 1)
    part, out_ptr = 0, q_ptr
    if item >= q_items + k_items:
        part, item, out_ptr = 2, item - q_items - k_items, v_ptr
    elif item >= q_items:
        part, item, out_ptr = 1, item - q_items, k_ptr
    out_height, out_width, step = _part(part, q_height, q_width, q_step, k_height, k_width, k_step)
    places = out_height * out_width
    head, place, sample = item % heads, item // heads % (places + 1), item // (heads * (places + 1))
    channel = tl.arange(0, DP)
    real = channel < D
    stride = 3 * heads * D
    tokens = 1 + frames * height * width
    x_ptr += sample.to(tl.int64) * tokens * stride + (part * heads + head) * D
    p_ptr += part * 29 * D
    gain = tl.load(p_ptr + 27 * D + channel, mask=real, other=0.0)
    bias = tl.load(p_ptr + 28 * D + channel, mask=real, other=0.0)
    row = (sample * heads + head).to(tl.int64) * (1 + frames * places)
    before = _rows_before(part, batch, heads, frames, q_height, q_width, k_height, k_width)
    mean_ptr += before
    rstd_ptr += before
    # The class token has no neighbours: a march of one step whose sum is the token itself.
    alone = place == places
    steps = tl.where(alone, 2, frames + 1)
    w0 = _vectors(p_ptr, channel, real, 0, D)
    w1 = _vectors(p_ptr, channel, real, 9, D)
    w2 = _vectors(p_ptr, channel, real, 18, D)
    y, x = place // out_width, place % out_width
    frames_read = tl.where(alone, 0, frames)
    last = tl.zeros((DP,), tl.float32)  # sums of the output before the plane, and of that within it
    here = tl.load(x_ptr + channel, mask=real & alone, other=0.0).to(tl.float32)
    for t in range(0, steps):
        values = _plane(x_ptr, t, y * step, x * step, frames_read, height, width, stride, channel, real)
        total = last + _dot(w2, values)
        mean = tl.sum(total, 0) / D
        centred = tl.where(real, total - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
        at = row + tl.where(alone, 0, 1 + ((t - 1) * out_height + y) * out_width + x)
        out = centred * rstd * gain + bias
        tl.store(out_ptr + at * D + channel, out.to(out_ptr.dtype.element_ty), mask=real & (t > 0))
        tl.store(mean_ptr + at, mean, mask=t > 0)
        tl.store(rstd_ptr + at, rstd, mask=t > 0)
        last = here + _dot(w1, values)
        here = _dot(w0, values)


@triton.jit
def _share(pid, q_programs, k_programs):
    """Part that a program of the backward pass works on, its place among those of this part, and their number."""
    part, programs = 0, q_programs
    if pid >= q_programs + k_programs:
        part, pid, programs = 2, pid - q_programs - k_programs, k_programs
    elif pid >= q_programs:
        part, pid, programs = 1, pid - q_programs, k_programs
    return part, pid, programs


@triton.jit
def _backward(
    x_ptr, p_ptr, dq_ptr, dk_ptr, dv_ptr, mean_ptr, rstd_ptr, dc_ptr, dx_ptr, sums_ptr,
    batch, heads, frames, height, width, q_height, q_width, q_step, k_height, k_width, k_step, q_programs, k_programs,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution's output, that of the class token, and a share of those of gain and bias."""
    part, program, programs = _share(tl.program_id(0), q_programs, k_programs)
    grad_ptr = dq_ptr
    if part == 1:
        grad_ptr = dk_ptr
    if part == 2:
        grad_ptr = dv_ptr
    out_height, out_width, step = _part(part, q_height, q_width, q_step, k_height, k_width, k_step)
    places = out_height * out_width
    channel = tl.arange(0, DP)
    real = channel < D
    stride = 3 * heads * D
    tokens = 1 + frames * height * width
    p_ptr += part * 29 * D
    w0 = _vectors(p_ptr, channel, real, 0, D)
    w1 = _vectors(p_ptr, channel, real, 9, D)
    w2 = _vectors(p_ptr, channel, real, 18, D)
    gain = tl.load(p_ptr + 27 * D + channel, mask=real, other=0.0)
    rows = _rows_before(part, batch, heads, frames, q_height, q_width, k_height, k_width)
    mean_ptr += rows
    rstd_ptr += rows
    dc_ptr += rows * D
    d_gain = tl.zeros((DP,), tl.float32)
    d_bias = tl.zeros((DP,), tl.float32)
    items = batch * heads * (places + 1)
    each = tl.cdiv(items, programs)
    for item in range(program * each, tl.minimum(program * each + each, items)):
        head, place, sample = item % heads, item // heads % (places + 1), item // (heads * (places + 1))
        class_at = sample.to(tl.int64) * tokens * stride + (part * heads + head) * D
        row = (sample * heads + head).to(tl.int64) * (1 + frames * places)
        alone = place == places
        y, x = place // out_width, place % out_width
        frames_read = tl.where(alone, 0, frames)
        last = tl.zeros((DP,), tl.float32)
        here = tl.load(x_ptr + class_at + channel, mask=real & alone, other=0.0).to(tl.float32)
        for t in range(0, tl.where(alone, 2, frames + 1)):
            values = _plane(x_ptr + class_at, t, y * step, x * step, frames_read, height, width, stride, channel, real)
            total = last + _dot(w2, values)
            at = row + tl.where(alone, 0, 1 + ((t - 1) * out_height + y) * out_width + x)
            live = real & (t > 0)
            mean = tl.load(mean_ptr + at, mask=t > 0, other=0.0)
            rstd = tl.load(rstd_ptr + at, mask=t > 0, other=0.0)
            normed = tl.where(live, (total - mean) * rstd, 0.0)
            grad = tl.load(grad_ptr + at * D + channel, mask=live, other=0.0).to(tl.float32)
            d_gain += grad * normed
            d_bias += grad
            grad = grad * gain
            dc = (grad - tl.sum(grad, 0) / D - normed * (tl.sum(grad * normed, 0) / D)) * rstd
            tl.store(dc_ptr + at * D + channel, dc.to(dc_ptr.dtype.element_ty), mask=live)
            tl.store(dx_ptr + class_at + channel, dc.to(dx_ptr.dtype.element_ty), mask=live & alone)
            last = here + _dot(w1, values)
            here = _dot(w0, values)
    sums_ptr += tl.program_id(0) * (29 * D)
    tl.store(sums_ptr + 27 * D + channel, d_gain, mask=real)
    tl.store(sums_ptr + 28 * D + channel, d_bias, mask=real)


@triton.jit
def _backward_weights(
    x_ptr, dc_ptr, sums_ptr,
    batch, heads, frames, height, width, q_height, q_width, q_step, k_height, k_width, k_step, q_programs, k_programs,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """This program's share of the gradients of the weights."""
    part, program, programs = _share(tl.program_id(0), q_programs, k_programs)
    out_height, out_width, step = _part(part, q_height, q_width, q_step, k_height, k_width, k_step)
    places = out_height * out_width
    channel = tl.arange(0, DP)
    real = channel < D
    stride = 3 * heads * D
    tokens = 1 + frames * height * width
    dc_ptr += _rows_before(part, batch, heads, frames, q_height, q_width, k_height, k_width) * D
    dw0 = _zeros(DP)
    dw1 = _zeros(DP)
    dw2 = _zeros(DP)
    items = batch * heads * places
    each = tl.cdiv(items, programs)
    for item in range(program * each, tl.minimum(program * each + each, items)):
        head, place, sample = item % heads, item // heads % places, item // (heads * places)
        in_ptr = x_ptr + sample.to(tl.int64) * tokens * stride + (part * heads + head) * D
        y, x = place // out_width, place % out_width
        out_ptr = dc_ptr + ((sample * heads + head).to(tl.int64) * (1 + frames * places) + 1 + place) * D
        last = tl.zeros((DP,), tl.float32)  # gradients of the outputs before the plane, within it and behind it
        here = tl.load(out_ptr + channel, mask=real, other=0.0).to(tl.float32)
        for t in range(0, frames):
            behind = (t + 1) * places * D
            following = tl.load(out_ptr + behind + channel, mask=real & (t + 1 < frames), other=0.0).to(tl.float32)
            values = _plane(in_ptr, t, y * step, x * step, frames, height, width, stride, channel, real)
            dw0 = _add(dw0, values, following)
            dw1 = _add(dw1, values, here)
            dw2 = _add(dw2, values, last)
            last = here
            here = following
    sums_ptr += tl.program_id(0) * (29 * D) + channel * 27
    for i in tl.static_range(9):
        tl.store(sums_ptr + i, dw0[i], mask=real)
        tl.store(sums_ptr + 9 + i, dw1[i], mask=real)
        tl.store(sums_ptr + 18 + i, dw2[i], mask=real)


@triton.jit
def _backward_input(
    dc_ptr, p_ptr, dx_ptr,
    batch, heads, frames, height, width, q_height, q_width, q_step, k_height, k_width, k_step,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Gradient of the input at one place of one head."""
    places = height * width
    items = batch * heads * places
    part, item = tl.program_id(0) // items, tl.program_id(0) % items
    head, place, sample = item % heads, item // heads % places, item // (heads * places)
    out_height, out_width, step = _part(part, q_height, q_width, q_step, k_height, k_width, k_step)
    y, x = place // width, place % width
    channel = tl.arange(0, DP)
    real = channel < D
    stride = 3 * heads * D
    out_rows = 1 + frames * out_height * out_width
    dc_ptr += _rows_before(part, batch, heads, frames, q_height, q_width, k_height, k_width) * D
    dc_ptr += (sample * heads + head).to(tl.int64) * out_rows * D
    dx_ptr += sample.to(tl.int64) * (1 + frames * places) * stride + (part * heads + head) * D
    p_ptr += part * 29 * D
    # Large strides leave out most places.
    met = ((y + 1) % step <= 2) & ((x + 1) % step <= 2)
    w0 = _vectors(p_ptr, channel, real & met, 0, D)
    w1 = _vectors(p_ptr, channel, real & met, 9, D)
    w2 = _vectors(p_ptr, channel, real & met, 18, D)
    last = tl.zeros((DP,), tl.float32)
    here = tl.zeros((DP,), tl.float32)
    for t in range(0, tl.where(met, frames + 1, 0)):
        grads = _collected(dc_ptr, t, y, x, frames, out_height, out_width, step, channel, real, D)
        total = last + _dot(w0, grads)
        at = (1 + (t - 1) * places + place) * stride
        tl.store(dx_ptr + at + channel, total.to(dx_ptr.dtype.element_ty), mask=real & (t > 0))
        last = here + _dot(w1, grads)
        here = _dot(w2, grads)
    for t in range(0, tl.where(met, 0, frames)):
        at = (1 + t * places + place) * stride
        tl.store(dx_ptr + at + channel, tl.zeros((DP,), dx_ptr.dtype.element_ty), mask=real)


def _told(x: Tensor, heads: int, size: list[int], q_step: int, kv_step: int) -> tuple[int, ...]:
    """Geometry as the kernels are told it."""
    grids = [(-(-size[1] // step), -(-size[2] // step), step) for step in (q_step, kv_step)]
    return (x.shape[0], heads, *size, *grids[0], *grids[1])


def _sizes(x: Tensor, heads: int) -> dict[str, int]:
    """What the kernels are compiled for."""
    dim = x.shape[2] // (3 * heads)
    return {"D": dim, "DP": triton.next_power_of_2(dim), "num_warps": 1}


def _shapes(told: tuple[int, ...], dim: int) -> list[tuple[int, int, int, int]]:
    """Of pooled queries, keys and values."""
    batch, heads, frames = told[:3]
    counts = [1 + frames * told[at] * told[at + 1] for at in (5, 8, 8)]
    return [(batch, heads, count, dim) for count in counts]


@custom_op("mast::pool3d", mutates_args=())
def pool3d(
    x: Tensor, parameters: list[Tensor], heads: int, size: list[int], q_step: int, kv_step: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """3x3x3 depthwise convolution with padding 1, then LayerNorm, on each head's channels of queries, keys and values.

    Args:
        x: (B, 1 + T * H * W, 3 * heads * dim): queries, keys and values side by side, a class token first, which is
            normalised only.
        parameters: of queries, of keys, of values: weight (dim, 1, 3, 3, 3), which the heads share, gain (dim,) and
            bias (dim,) of the norm.
        size: (T, H, W).
        q_step, kv_step: strides along height and width; that along time is 1.

    Returns:
        Queries, keys and values, each (B, heads, 1 + T * H' * W', dim) in the type of ``x``; mean and reciprocal
        deviation of all their rows, (2, rows); and the parameters, (3, 29, dim); both float32.
    """
    x = x.contiguous()
    packed = torch.cat([p.reshape(p.shape[0], -1).t() for p in parameters]).float().view(3, PARAMETERS, -1)
    told, constants = _told(x, heads, size, q_step, kv_step), _sizes(x, heads)
    q, k, v = (x.new_empty(shape) for shape in _shapes(told, constants["D"]))
    kept = x.new_empty((2, sum(each.shape[2] for each in (q, k, v)) * x.shape[0] * heads), dtype=torch.float32)
    items = x.shape[0] * heads * sum(told[at] * told[at + 1] + 1 for at in (5, 8, 8))
    _forward[(items,)](x, packed, q, k, v, kept[0], kept[1], *told, eps, **constants)
    return q, k, v, kept, packed


@custom_op("mast::pool3d_backward", mutates_args=())
def pool3d_backward(
    x: Tensor, kept: Tensor, packed: Tensor, grads: list[Tensor], size: list[int], q_step: int, kv_step: int
) -> tuple[Tensor, Tensor]:
    """Gradients of `pool3d`: of its input, and in float32 of its parameters: (3, 29 * dim), weights, gain, bias."""
    x, (dq, dk, dv) = x.contiguous(), (grad.contiguous() for grad in grads)
    heads, dim = dq.shape[1], dq.shape[3]
    told, constants = _told(x, heads, size, q_step, kv_step), _sizes(x, heads)
    dx, dc = x.new_empty(x.shape), x.new_empty((kept.shape[1], dim))
    q_places, k_places = told[5] * told[6], told[8] * told[9]
    programs = [
        max(1, min(x.shape[0] * heads * places, PROGRAMS * places // (q_places + 2 * k_places)))
        for places in (q_places, k_places, k_places)
    ]
    sums = x.new_empty((sum(programs), PARAMETERS * dim), dtype=torch.float32)
    _backward[(sum(programs),)](
        x, packed, dq, dk, dv, kept[0], kept[1], dc, dx, sums, *told, programs[0], programs[1], **constants
    )
    _backward_weights[(sum(programs),)](x, dc, sums, *told, programs[0], programs[1], **constants)
    _backward_input[(3 * x.shape[0] * heads * size[1] * size[2],)](dc, packed, dx, *told, **constants)
    return dx, fold(*sums.split(programs)).view(3, -1)


@pool3d.register_fake
def _(x, parameters, heads, size, q_step, kv_step, eps):  # type: ignore[no-untyped-def]
    dim = parameters[1].shape[0]
    shapes = _shapes(_told(x, heads, size, q_step, kv_step), dim)
    kept = x.new_empty((2, sum(shape[2] for shape in shapes) * x.shape[0] * heads), dtype=torch.float32)
    return *[x.new_empty(shape) for shape in shapes], kept, x.new_empty((3, PARAMETERS, dim), dtype=torch.float32)


@pool3d_backward.register_fake
def _(x, kept, packed, grads, size, q_step, kv_step):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), packed.new_empty((3, packed.shape[1] * packed.shape[2]))


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, parameters, _, *geometry, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates what is kept beside the output
    ctx.save_for_backward(x, *output[3:])
    ctx.shapes = [each.shape for each in output[:3]]
    ctx.geometry, ctx.kinds = geometry, [(parameter.shape, parameter.dtype) for parameter in parameters]


def _differentiate(ctx, *grads):  # type: ignore[no-untyped-def]
    x, kept, packed = ctx.saved_tensors
    given = [x.new_zeros(shape) if g is None else g for g, shape in zip(grads[:3], ctx.shapes, strict=True)]
    dx, sums = pool3d_backward(x, kept, packed, given, *ctx.geometry)
    dim = packed.shape[2]
    found = [each for part in sums for each in part.split([27 * dim, dim, dim])]
    return (
        dx,
        [value.view(shape).to(dtype) for value, (shape, dtype) in zip(found, ctx.kinds, strict=True)],
        *[None] * 5,
    )


pool3d.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula([torch.ops.mast.pool3d])
def _flops(*args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Of the convolutions."""
    return 2 * 27 * sum(math.prod(shape) for shape in out_shape[:3])


@register_flop_formula([torch.ops.mast.pool3d_backward])
def _flops_backward(x, kept, packed, grads, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Of their two gradients."""
    return 2 * 2 * 27 * sum(math.prod(shape) for shape in grads)
