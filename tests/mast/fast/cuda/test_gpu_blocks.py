"""Blocks by kernels on a GPU: the functions of branches are in use, and compute what the plain code does."""

import pytest
import torch

import mast
from mast.fast import comparison
from mast.fast.blocks import FastBlock
from mast.model import Block

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dims", [(96, 96, 1), (96, 192, 2), (384, 384, 4)])  # hidden layer computed again, or kept
@pytest.mark.parametrize("strides", [((1, 1), (2, 4)), ((2, 2), (1, 2))])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_block(dims: tuple[int, int, int], strides: tuple, rate: float) -> None:
    block = Block(*dims, (8, 16), *strides, 4.0, rate).cuda()
    assert comparison.difference(block, "cuda") == ""
    mast.accelerate(block)
    assert isinstance(block, FastBlock) and mast.backends(block) == {"FastBlock": "cuda"}
    x = torch.randn(2, 8, 16, dims[0], device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert block._by_branches(x) and not block._by_branches(x.float())
        out = block(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad is not None and all(parameter.grad is not None for parameter in block.parameters())


def test_a_block_whose_parts_are_followed_or_replaced_runs_operator_by_operator() -> None:
    block = mast.accelerate(Block(96, 96, 1, (8, 16), (1, 1), (1, 1), 4.0, 0.0).cuda())
    x, seen = torch.randn(2, 8, 16, 96, device="cuda", dtype=torch.bfloat16), []
    block.mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        block(x)
    assert len(seen) == 1
