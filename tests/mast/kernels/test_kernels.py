"""Who is served by the GPU's kernels."""

import pytest
import torch

from mast import kernels


def test_a_cpu_is_not_served() -> None:
    assert not kernels.usable(torch.zeros(1, dtype=torch.bfloat16), 96)


@pytest.mark.gpu
def test_half_precision_and_usual_heads_are_served() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16, device="cuda")
    assert kernels.usable(x, 96) and kernels.usable(x.half(), 16)
    assert not kernels.usable(x.float(), 96) and not kernels.usable(x, 8) and not kernels.usable(x, 136)
    assert not kernels.usable(x[:0], 96)
    assert torch.func.vmap(lambda row: row + kernels.usable(row, 96))(x[None]).item() == 0
