"""Who is served by the GPU's cuda."""

import pytest
import torch

from mast.fast import cuda


def test_a_cpu_is_not_served() -> None:
    assert not cuda.usable(torch.zeros(1, dtype=torch.bfloat16), 96)


class Asks(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if cuda.exporting() else x


def test_a_compiled_model_reaches_the_kernels_and_an_exported_one_does_not() -> None:
    x = torch.zeros(2)
    assert torch.compile(Asks(), backend="eager", fullgraph=True)(x).sum() == 0
    for strict in (True, False):
        assert torch.export.export(Asks(), (x,), strict=strict).module()(x).sum() == 2
    assert torch.compile(Asks(), backend="eager", fullgraph=True)(x).sum() == 0, "also after an export"


@pytest.mark.gpu
def test_half_precision_and_usual_heads_are_served() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16, device="cuda")
    assert cuda.usable(x, 96) and cuda.usable(x.half(), 16)
    assert not cuda.usable(x.float(), 96) and not cuda.usable(x, 8) and not cuda.usable(x, 136)
    assert not cuda.usable(x[:0], 96)
    assert torch.func.vmap(lambda row: row + cuda.usable(row, 96))(x[None]).item() == 0
