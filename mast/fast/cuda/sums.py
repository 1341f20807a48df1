"""Sums over programs: what each of them added up of a parameter's gradient, in an order that is always the same."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 64


@triton.jit
def _fold(
    a_ptr, b_ptr, c_ptr, out_ptr, half_ptr, a_rows, b_rows, c_rows, a_width, b_width, c_width,
    HALF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS columns of the sum of the rows of one of three matrices."""
    shares_ptr, rows, width, before = a_ptr, a_rows, a_width, 0
    if tl.program_id(1) == 1:
        shares_ptr, rows, width, before = b_ptr, b_rows, b_width, a_width
    if tl.program_id(1) == 2:
        shares_ptr, rows, width, before = c_ptr, c_rows, c_width, a_width + b_width
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(shares_ptr + at, mask=(row < rows)[:, None] & (column < width)[None, :], other=0.0)
    summed = tl.sum(total, 0)
    tl.store(out_ptr + before + column, summed, mask=column < width)
    if HALF:
        tl.store(half_ptr + before + column, summed.to(half_ptr.dtype.element_ty), mask=column < width)


def fold(*shares: Tensor) -> Tensor:
    """Sums of the rows of up to three matrices (programs, width) in float32, one behind the other."""
    return _folded(shares, None)[0]


def fold_twice(dtype: torch.dtype, *shares: Tensor) -> tuple[Tensor, Tensor]:
    """What `fold` returns, and the same in ``dtype``, for parameters of that type."""
    return _folded(shares, dtype)


def _folded(shares: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    widths = [each.shape[1] for each in shares]
    out = torch.empty(sum(widths), dtype=torch.float32, device=shares[0].device)
    half = out if dtype is None else torch.empty_like(out, dtype=dtype)
    a, b, c = (*shares, shares[0], shares[0])[:3]
    _fold[(triton.cdiv(max(widths), COLUMNS), len(shares))](
        a, b, c, out, half, len(a), len(b), len(c), a.shape[1], b.shape[1], c.shape[1],
        HALF=dtype is not None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    return out, half
