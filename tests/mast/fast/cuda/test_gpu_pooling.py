"""Pooling of queries, keys and values as kernels equals convolution and norm, values and gradients."""

import pytest
import torch
from kernel_errors import Grid, pooling_errors

from mast.fast import cuda

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "sizes",
    [
        ((8, 64), 4, 96, (1, 1), (1, 1)),
        ((16, 255), 1, 96, (1, 1), (2, 4)),
        ((5, 7), 2, 24, (2, 2), (1, 2)),
        ((7, 9), 3, 128, (1, 2), (2, 2)),
    ],
)
def test_equals_convolution_and_norm(sizes: tuple[Grid, int, int, Grid, Grid]) -> None:
    assert max(pooling_errors(cuda.pool, sizes, torch.bfloat16, "cuda")) < 1e-2
