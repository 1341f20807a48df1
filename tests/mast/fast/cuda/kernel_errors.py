"""How far kernels are from the written-out formulas in float64: values and all gradients."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mast import model

Grid = tuple[int, int]


def error(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.detach().double()
    return float((found.detach().double() - wanted).norm() / wanted.norm())


def errors(found: Sequence[Tensor], wanted: Sequence[Tensor], inputs: list[Any], exact: list[Any]) -> list[float]:
    """Of the results, and of the gradients of the inputs under the same random gradients of the results."""
    grads = [torch.randn_like(each) for each in wanted]
    halves = [grad.to(each.dtype) for grad, each in zip(grads, found, strict=True)]
    pairs = list(zip(found, wanted, strict=True))
    pairs += zip(torch.autograd.grad(found, inputs, halves), torch.autograd.grad(wanted, exact, grads), strict=True)
    return [error(*pair) for pair in pairs]


def attention_errors(
    attention: Callable[..., Tensor],
    sizes: tuple[Grid, Grid, int, int],
    dtype: torch.dtype,
    device: str,
    batch: int = 2,
) -> list[float]:
    """Of ``attention(q, k, v, r_freq, r_time)``. ``sizes``: grids of queries and of keys, heads, channels of a head."""
    torch.manual_seed(0)
    queries, keys, heads, dim = sizes
    shapes = [(batch, *grid, heads, dim) for grid in (queries, keys, keys)]
    shapes += [(queries[0], keys[0], dim), (queries[1], keys[1], dim)]
    inputs = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    return errors([attention(*inputs)], [model.attention(*exact)], inputs, exact)


def pooling_errors(
    pool: Callable[..., Any], sizes: tuple[Grid, int, int, Grid, Grid], dtype: torch.dtype, device: str, batch: int = 2
) -> list[float]:
    """Of ``mast.fast.cuda.pool``. ``sizes``: grid, heads, channels of a head, strides of queries and of keys."""
    torch.manual_seed(0)
    grid, heads, dim, q_stride, kv_stride = sizes
    pools = [model.DepthwisePool(dim, stride).to(device) for stride in (q_stride, kv_stride, kv_stride)]
    for each in pools:
        for parameter in each.norm.parameters():
            nn.init.normal_(parameter)
    x = torch.randn(batch, *grid, 3 * heads * dim, device=device).to(dtype).requires_grad_()
    exact, exact_x = [copy.deepcopy(each).double() for each in pools], x.detach().double().requires_grad_()
    wanted = [each(part, heads) for each, part in zip(exact, exact_x.chunk(3, dim=-1), strict=True)]
    parameters, leaves = (
        [parameter for each in some for parameter in (each.weight, each.norm.weight, each.norm.bias)]
        for some in (pools, exact)
    )
    found = pool(x, parameters, heads, list(q_stride), list(kv_stride), model.NORM_EPS)[:3]
    return errors(found, wanted, [x, *parameters], [exact_x, *leaves])


def pooling3d_errors(
    pool: Callable[..., Any], sizes: tuple[tuple[int, int, int], int, int, int, int], dtype: torch.dtype, device: str
) -> list[float]:
    """Of ``mast.fast.cuda.pool3d``. ``sizes``: grid, heads, channels of a head, strides of queries and of keys."""
    torch.manual_seed(0)
    grid, heads, dim, q_step, kv_step = sizes
    x = torch.randn(1, 1 + grid[0] * grid[1] * grid[2], 3 * heads * dim, device=device).to(dtype).requires_grad_()
    shapes = [(dim, 1, 3, 3, 3), (dim,), (dim,)] * 3
    parameters = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
    exact = [each.detach().double().requires_grad_() for each in (x, *parameters)]
    wanted = []
    for part, step in enumerate((q_step, kv_step, kv_step)):
        weight, gain, bias = exact[1 + 3 * part : 4 + 3 * part]
        tokens = exact[0].chunk(3, dim=-1)[part].unflatten(2, (heads, dim)).transpose(1, 2)  # (B, heads, N, dim)
        volume = tokens[:, :, 1:].flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        volume = nn.functional.conv3d(volume, weight, stride=(1, step, step), padding=1, groups=dim)
        rows = torch.cat((tokens[:, :, :1], volume.flatten(2).transpose(1, 2).unflatten(0, (1, heads))), dim=2)
        wanted.append(nn.functional.layer_norm(rows, (dim,), gain, bias, 1e-6))
    found = pool(x, parameters, heads, list(grid), q_step, kv_step, 1e-6)[:3]
    return errors(found, wanted, [x, *parameters], exact)
