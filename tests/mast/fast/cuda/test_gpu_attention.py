"""Attention as one kernel equals the written-out formula, values and gradients."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from mast import model
from mast.fast import cuda, widened

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "dim"),
    [
        ((8, 64), (8, 64), 4, 96),
        ((16, 256), (8, 64), 1, 96),
        ((3, 37), (5, 70), 2, 96),
        ((2, 20), (2, 130), 3, 128),
        ((4, 9), (3, 5), 1, 24),
    ],
)
def test_equals_the_formula(
    queries: tuple[int, int], keys: tuple[int, int], heads: int, dim: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    shapes = [(2, *queries, heads, dim), (2, *keys, heads, dim), (2, *keys, heads, dim)]
    shapes += [(queries[0], keys[0], dim), (queries[1], keys[1], dim)]
    inputs = [torch.randn(shape, dtype=dtype, device="cuda").requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = model.attention(*exact)
    grad = torch.randn_like(expected)
    with mock.patch.object(cuda, "attention", wraps=cuda.attention) as kernel:
        out = widened.attention(*inputs)
    assert kernel.called
    assert difference(out, expected) < TOLERANCE[dtype]
    wanted = torch.autograd.grad(expected, exact, grad)
    for found, gradient in zip(torch.autograd.grad(out, inputs, grad.to(dtype)), wanted, strict=True):
        assert difference(found, gradient) < TOLERANCE[dtype]
