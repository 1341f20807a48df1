"""Pooling of queries, keys and values as kernels equals convolution and norm, values and gradients."""

import pytest
import torch
from kernel_errors import Grid, pooling3d_errors, pooling_errors

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


def test_of_a_single_clip_by_a_single_head() -> None:
    """Sizes of 1 are constants to Triton."""
    sizes = ((16, 64), 1, 96, (1, 1), (2, 4))
    assert max(pooling_errors(cuda.pool, sizes, torch.bfloat16, "cuda", batch=1)) < 1e-2


@pytest.mark.parametrize("sizes", [((4, 14, 14), 4, 96, 1, 2), ((2, 5, 7), 1, 24, 2, 4), ((3, 9, 9), 1, 96, 1, 8)])
def test_of_a_video_equals_convolution_and_norm(sizes: tuple[tuple[int, int, int], int, int, int, int]) -> None:
    assert max(pooling3d_errors(cuda.pool3d, sizes, torch.bfloat16, "cuda")) < 1e-2
