"""What lies between the matrix products of a block's MLP, as kernels for GPUs: residual addition, LayerNorm, GELU.

They read and write half precision and compute in float32, where autocast would cast to float32 and back in kernels of
their own. What passes by in the backward pass is summed up for the biases: no tensor is read for a bias alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast.fast.cuda.sums import fold

# Values of a tile of LayerNorm, and its warps; programs of the backward pass, which share the sums over all rows.
TILE, WARPS, PROGRAMS = 2048, 4, 528
# Rows and columns of a tile of GELU's backward pass, its warps, and programs.
GELU_ROWS, GELU_COLUMNS, GELU_WARPS, GELU_PROGRAMS = 16, 128, 4, 1056


@triton.jit
def _norm(
    x_ptr, branch_ptr, bias_ptr, share_ptr, gain_ptr, shift_ptr, next_bias_ptr,
    sum_ptr, next_ptr, out_ptr, mean_ptr, rstd_ptr,
    rows, sample_rows, eps,
    ADD: tl.constexpr, SHARES: tl.constexpr, NEXT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    channel = tl.arange(0, DP)
    real = channel < D
    mask = ok[:, None] & real[None, :]
    at = row.to(tl.int64)[:, None] * D + channel[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        branch = tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
        branch += tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        if SHARES:
            branch *= tl.load(share_ptr + row // sample_rows, mask=ok, other=0.0).to(tl.float32)[:, None]
        rounded = (x + branch).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, rounded, mask=mask)
        x = rounded.to(tl.float32)
        if NEXT:
            following = x + tl.load(next_bias_ptr + channel, mask=real, other=0.0).to(tl.float32)[None, :]
            tl.store(next_ptr + at, following.to(next_ptr.dtype.element_ty), mask=mask)
    mean = tl.sum(x, 1) / D
    centred = tl.where(mask, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    gain = tl.load(gain_ptr + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + channel, mask=real, other=0.0).to(tl.float32)
    out = centred * rstd[:, None] * gain[None, :] + shift[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=ok)
    tl.store(rstd_ptr + row, rstd, mask=ok)


@triton.jit
def _norm_backward(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, gain_ptr, past_ptr, share_ptr, past_share_ptr, dx_ptr, branch_ptr, sums_ptr,
    rows, sample_rows, tiles,
    PAST: tl.constexpr, BIASES: tl.constexpr, SHARES: tl.constexpr, PAST_SHARES: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the norm's input, plus ``past``, and this program's share of those of gain, shift and two biases."""
    channel = tl.arange(0, DP)
    real = channel < D
    gain = tl.load(gain_ptr + channel, mask=real, other=0.0).to(tl.float32)
    d_gain = tl.zeros((ROWS, DP), tl.float32)
    d_shift = tl.zeros((ROWS, DP), tl.float32)
    d_bias = tl.zeros((ROWS, DP), tl.float32)
    d_past = tl.zeros((ROWS, DP), tl.float32)
    begin = tl.program_id(0) * tiles
    for tile in range(begin, begin + tiles):
        row = tile * ROWS + tl.arange(0, ROWS)
        ok = row < rows
        mask = ok[:, None] & real[None, :]
        at = row.to(tl.int64)[:, None] * D + channel[None, :]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=ok, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=ok, other=0.0)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        normed = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        d_gain += grad * normed
        d_shift += grad
        grad = grad * gain[None, :]
        inner = tl.sum(grad, 1) / D
        along = tl.sum(grad * normed, 1) / D
        dx = (grad - inner[:, None] - normed * along[:, None]) * rstd[:, None]
        if PAST:
            past = tl.load(past_ptr + at, mask=mask, other=0.0).to(tl.float32)
            dx += past
            if PAST_SHARES:
                past *= tl.load(past_share_ptr + row // sample_rows, mask=ok, other=0.0).to(tl.float32)[:, None]
            if BIASES:
                d_past += past
        dx = tl.where(mask, dx, 0.0)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if SHARES:
            dx *= tl.load(share_ptr + row // sample_rows, mask=ok, other=0.0).to(tl.float32)[:, None]
            tl.store(branch_ptr + at, dx.to(branch_ptr.dtype.element_ty), mask=mask)
        if BIASES:
            d_bias += dx
    if BIASES:
        sums_ptr += tl.program_id(0) * 4 * D
        tl.store(sums_ptr + 2 * D + channel, tl.sum(d_bias, 0), mask=real)
        tl.store(sums_ptr + 3 * D + channel, tl.sum(d_past, 0), mask=real)
    else:
        sums_ptr += tl.program_id(0) * 2 * D
    tl.store(sums_ptr + channel, tl.sum(d_gain, 0), mask=real)
    tl.store(sums_ptr + D + channel, tl.sum(d_shift, 0), mask=real)


@triton.jit
def _gelu_backward(
    hidden_ptr, grad_ptr, out_ptr, sums_ptr, rows, width, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """GELU again; its input's gradient in the place of its output's; and a share of the sum of that over all rows."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    begin = tl.program_id(1) * tiles
    for tile in range(begin, begin + tiles):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & real[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(hidden_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        below = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        grad *= below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        tl.store(out_ptr + at, (x * below).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=mask)
        total += grad
    tl.store(sums_ptr + tl.program_id(1) * width + column, tl.sum(total, 0), mask=real)


def _sizes(dim: int) -> dict[str, int]:
    """What the norms' kernels are compiled for."""
    wide = triton.next_power_of_2(dim)
    return {"D": dim, "DP": wide, "ROWS": max(1, TILE // wide), "num_warps": WARPS}


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm of ``x``, contiguous (..., dim), in its type; and mean and reciprocal deviation (2, rows)."""
    dim, out = x.shape[-1], torch.empty_like(x)
    rows, sizes = x.numel() // dim, _sizes(dim)
    kept = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    _norm[(triton.cdiv(rows, sizes["ROWS"]),)](
        x, x, gain, gain, gain, shift, gain, out, out, out, kept[0], kept[1], rows, rows, eps,
        ADD=False, SHARES=False, NEXT=False, **sizes,
    )  # fmt: skip
    return out, kept


def add_and_norm(
    x: Tensor,
    branch: Tensor,
    bias: Tensor,
    shares: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    next_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x + shares * (branch + bias)``, its LayerNorm, and mean and reciprocal deviation (2, rows).

    Args:
        x, branch: (B, ..., dim), contiguous.
        shares: factors of the samples, B of them, or None for ones.
        next_bias: of the branch that is added next; the sum with it comes last (the bare sum again, if None).
    """
    dim, total, out = x.shape[-1], torch.empty_like(x), torch.empty_like(x)
    following = total if next_bias is None else torch.empty_like(x)
    rows, sizes = x.numel() // dim, _sizes(dim)
    kept = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    some = [gain if each is None else each for each in (shares, gain, shift, next_bias)]
    _norm[(triton.cdiv(rows, sizes["ROWS"]),)](
        x, branch, bias, *some, total, following, out, kept[0], kept[1], rows, rows // x.shape[0], eps,
        ADD=True, SHARES=shares is not None, NEXT=next_bias is not None, **sizes,
    )  # fmt: skip
    return total, out, kept, following


def layer_norm_backward(
    grad: Tensor, x: Tensor, kept: Tensor, gain: Tensor, past: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, plus ``past``, which may come past the norm, and in float32 of gain and shift."""
    dim = x.shape[-1]
    dx, sums = _backward(grad, x, kept, gain, past, None, None, None, False)
    return dx, *fold(sums).split(dim)


def add_and_norm_backward(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    gain: Tensor,
    past: Tensor,
    shares: Tensor | None,
    past_shares: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `add_and_norm`, whose sum is ``x`` and has the gradient ``past`` beside that of its norm.

    Args:
        shares, past_shares: factors of the samples of this addition, and of that which ``past`` comes from.

    Returns:
        Gradients of the residual and of the branch; and for `fold`, four side by side, of gain, shift, the bias of this
        branch, and that of the other addition's: the sum of ``past_shares * past``.
    """
    branch = torch.empty_like(x) if shares is not None else None
    dx, sums = _backward(grad, x, kept, gain, past, branch, shares, past_shares, True)
    return dx, dx if branch is None else branch, sums


def _backward(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    gain: Tensor,
    past: Tensor | None,
    branch: Tensor | None,
    shares: Tensor | None,
    past_shares: Tensor | None,
    biases: bool,
) -> tuple[Tensor, Tensor]:
    dim, dx = x.shape[-1], torch.empty_like(x)
    rows, sizes = x.numel() // dim, _sizes(dim)
    tiles = triton.cdiv(triton.cdiv(rows, sizes["ROWS"]), PROGRAMS)
    programs = triton.cdiv(rows, sizes["ROWS"] * tiles)
    sums = torch.empty((programs, (4 if biases else 2) * dim), dtype=torch.float32, device=x.device)
    some = [gain if each is None else each for each in (past, shares, past_shares)]
    _norm_backward[(programs,)](
        grad, x, kept[0], kept[1], gain, *some, dx, dx if branch is None else branch, sums,
        rows, rows // x.shape[0], tiles,
        PAST=past is not None, BIASES=biases, SHARES=shares is not None, PAST_SHARES=past_shares is not None, **sizes,
    )  # fmt: skip
    return dx, sums


def gelu_backward_(hidden: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """``grad``, of GELU(hidden), becomes that of ``hidden``; both (N, width), contiguous.

    Returns:
        GELU(hidden), and for `fold` the sums of the gradient over some of the rows each, (programs, width).
    """
    rows, width = hidden.shape
    out = torch.empty_like(hidden)
    blocks = triton.cdiv(width, GELU_COLUMNS)
    tiles = triton.cdiv(triton.cdiv(rows, GELU_ROWS) * blocks, GELU_PROGRAMS)
    programs = triton.cdiv(rows, GELU_ROWS * tiles)
    sums = torch.empty((programs, width), dtype=torch.float32, device=hidden.device)
    _gelu_backward[(blocks, programs)](
        hidden, grad, out, sums, rows, width, tiles, ROWS=GELU_ROWS, COLUMNS=GELU_COLUMNS, num_warps=GELU_WARPS
    )
    return out, sums
