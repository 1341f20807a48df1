"""Pooling as one kernel equals convolution and norm, values and gradients."""

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from mast.fast import cuda
from mast.fast.blocks import FastPool

pytestmark = pytest.mark.gpu


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("grid", "heads", "dim", "stride"),
    [((8, 64), 4, 96, (1, 1)), ((16, 255), 1, 96, (2, 4)), ((5, 7), 2, 24, (1, 2)), ((7, 9), 3, 128, (2, 2))],
)
def test_equals_convolution_and_norm(grid: tuple[int, int], heads: int, dim: int, stride: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pool = FastPool(dim, stride).cuda()
    for parameter in pool.norm.parameters():
        nn.init.normal_(parameter)
    exact = copy.deepcopy(pool).double()
    x = torch.randn(2, *grid, heads * dim, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    expected = exact(exact_x, heads)
    grad = torch.randn_like(expected)
    with mock.patch.object(cuda, "pool", wraps=cuda.pool) as kernel:
        out = pool(x, heads)
    assert kernel.called
    assert difference(out, expected) < 1e-2
    wanted = torch.autograd.grad(expected, [exact_x, *exact.parameters()], grad)
    found = torch.autograd.grad(out, [x, *pool.parameters()], grad.bfloat16())
    for value, gradient in zip(found, wanted, strict=True):
        assert difference(value, gradient) < 1e-2
