"""Sums over programs: what each of them added up of a parameter's gradient, in an order that is always the same."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 64


@triton.jit
def _fold(shares_ptr, out_ptr, first, second, third, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """COLUMNS columns of the sum of one group of rows."""
    group = tl.program_id(1)
    begin, end = 0, first
    if group == 1:
        begin, end = first, first + second
    if group == 2:
        begin, end = first + second, first + second + third
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(shares_ptr + at, mask=(row < end)[:, None] & (column < width)[None, :], other=0.0)
    tl.store(out_ptr + group * width + column, tl.sum(total, 0), mask=column < width)


def fold(shares: Tensor, groups: list[int]) -> Tensor:
    """(programs, width) float32 -> (groups, width): the sums of up to three ``groups`` of rows, by their numbers."""
    width = shares.shape[1]
    out = torch.empty((len(groups), width), dtype=torch.float32, device=shares.device)
    first, second, third = (*groups, 0, 0)[:3]
    _fold[(triton.cdiv(width, COLUMNS), len(groups))](
        shares, out, first, second, third, width, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
    )
    return out
