"""Attention as one kernel equals the written-out formula, values and gradients."""

from unittest import mock

import pytest
import torch
from kernel_errors import Grid, attention_errors

from mast.fast import cuda, widened

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "sizes",
    [
        ((8, 64), (8, 64), 4, 96),
        ((16, 256), (8, 64), 1, 96),
        ((3, 37), (5, 70), 2, 96),
        ((2, 20), (2, 130), 3, 128),
        ((4, 9), (3, 5), 1, 24),
    ],
)
def test_equals_the_formula(sizes: tuple[Grid, Grid, int, int], dtype: torch.dtype) -> None:
    with mock.patch.object(cuda, "attention", wraps=cuda.attention) as kernel:
        found = attention_errors(widened.attention, sizes, dtype, "cuda")
    assert kernel.called and max(found) < TOLERANCE[dtype]
