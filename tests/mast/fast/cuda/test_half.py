"""Weights that are cast together: what autocast casts one by one, whatever has changed them."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mast
from mast.fast import blocks
from mast.fast.cuda import half
from mast.model import Block


@pytest.fixture
def pair() -> tuple[Block, Block]:
    """A block of MAST, and its twin, operator by operator."""
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depths": [1, 1], "q_strides": [[1, 1], [2, 2]], "kv_strides": [[2, 4], [2, 2]]}
    model = mast.accelerate(mast.create_model("mast_pico", drop_path=0.0, **options), "reference")
    block = list(model.blocks)[1]  # with a shortcut
    return block, copy.deepcopy(block)


def values(block: nn.Module, x: Tensor, by: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = by(block, x)
    out.float().square().sum().backward()
    found = [out.detach(), x.grad, *(parameter.grad.clone() for parameter in block.parameters())]
    block.zero_grad()
    return found


def cast_together(block: nn.Module, x: Tensor) -> Tensor:
    with half.cast_within(block, torch.bfloat16):
        return block(x)


def check_same(pair: tuple[nn.Module, nn.Module], by: Callable[[nn.Module, Tensor], Tensor] = cast_together) -> None:
    x = torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(1))
    wanted = values(pair[0], x, lambda block, x: block(x))
    for found, value in zip(values(pair[1], x, by), wanted, strict=True):
        assert found.dtype == value.dtype and torch.equal(found, value)


def test_values_and_gradients_are_those_of_autocast(pair: tuple[Block, Block]) -> None:
    check_same(pair)
    names = [name for name, _ in pair[1].named_parameters()]
    assert names == [name for name, _ in pair[0].named_parameters()], "the parameters are in their places again"
    assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in pair[1].parameters())


def by_optimizer(block: Block) -> None:
    for parameter in block.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(block.parameters(), lr=0.1).step()
    block.zero_grad()


def by_state_dict(block: Block) -> None:
    block.load_state_dict({name: 2 * value for name, value in block.state_dict().items()})


def in_place(block: Block) -> None:
    with torch.no_grad():
        block.mlp.fc1.weight.mul_(2)


def behind_the_counter(block: Block) -> None:
    block.mlp.fc1.weight.data.mul_(2)  # no version counter tells of this one


def other_memory(block: Block) -> None:
    block.mlp.fc1.weight.data = 2 * block.mlp.fc1.weight.data


def other_parameter(block: Block) -> None:
    block.mlp.fc1.weight = nn.Parameter(2 * block.mlp.fc1.weight.detach())


def all_at_once(block: Block) -> None:
    torch._foreach_lerp_([p.data for p in block.parameters()], [torch.zeros_like(p) for p in block.parameters()], 0.3)


WAYS = (by_optimizer, by_state_dict, in_place, behind_the_counter, other_memory, other_parameter, all_at_once)


def test_weights_that_have_changed_are_never_out_of_date(pair: tuple[Block, Block]) -> None:
    for change in WAYS:
        before = pair[1].mlp.fc1.weight.detach().clone()
        for block in pair:
            change(block)
        assert not torch.equal(before, pair[1].mlp.fc1.weight)
        check_same(pair)


def test_two_views_and_a_change_between_forward_and_backward(pair: tuple[Block, Block]) -> None:
    x = torch.randn(2, 4, 4, 16)
    gradients = []
    for block, by in zip(pair, (lambda b, x: b(x), cast_together), strict=True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            total = by(block, x).float().sum() + by(block, 2 * x).float().square().sum()
        total.backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    for mine, wanted in zip(*gradients[::-1], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


def test_frozen_layers_checkpoints_and_second_derivatives(pair: tuple[Block, Block]) -> None:
    check_same(pair, lambda block, x: checkpoint(cast_together, block, x, use_reentrant=False))
    for block in pair:
        block.attn.requires_grad_(False)
    x = torch.randn(2, 4, 4, 32, requires_grad=True)
    second = []
    for block, by in zip(pair, (lambda b, x: b(x), cast_together), strict=True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = by(block.mlp, x)
        (first,) = torch.autograd.grad(out.float().square().sum(), block.mlp.fc2.bias, create_graph=True)
        first.square().sum().backward()
        second.append(block.mlp.fc1.weight.grad)
        assert all(parameter.grad is None for parameter in block.attn.parameters())
    torch.testing.assert_close(*second)


def test_an_error_puts_the_weights_back(pair: tuple[Block, Block]) -> None:
    weight = pair[1].mlp.fc1.weight
    with pytest.raises(RuntimeError), half.cast_within(pair[1], torch.bfloat16):
        assert pair[1].mlp.fc1.weight.dtype == torch.bfloat16
        raise RuntimeError
    assert pair[1].mlp.fc1.weight is weight


class Wrapped(nn.Linear):
    """A layer of somebody else."""


def test_layers_of_other_classes_and_half_precision_are_left_alone() -> None:
    module = nn.Sequential(Wrapped(3, 3), nn.LayerNorm(3), nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3, bias=False))
    with half.cast_within(module, torch.bfloat16):
        kinds = [layer.weight.dtype for layer in module]
    assert kinds == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


@pytest.fixture
def fast(pair: tuple[Block, Block], monkeypatch: pytest.MonkeyPatch) -> tuple[Block, Block]:
    """Both of them fast; the twin casts as on a GPU."""
    cast = lambda block, x: half.cast_within(block, torch.bfloat16)  # noqa: E731
    here = lambda block: block is pair[1] and not torch.compiler.is_compiling()  # noqa: E731
    monkeypatch.setattr(blocks, "weights_in_half", lambda block, x: cast(block, x) if here(block) else nullcontext())
    monkeypatch.setattr(blocks.FastBlock, "way", lambda self, x: "operators")
    return mast.accelerate(pair[0]), mast.accelerate(pair[1])


def test_fast_blocks_cast_together(fast: tuple[Block, Block]) -> None:
    within = []
    fast[1].attn.proj.register_forward_pre_hook(lambda layer, x: within.append(layer.weight.dtype))
    check_same(fast, lambda block, x: block(x))
    assert within == [torch.bfloat16]


def test_compiled_blocks_take_their_weights_cast(fast: tuple[Block, Block]) -> None:
    graphs: list[set[torch.dtype]] = []

    def seen(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        weight = fast[1].mlp.fc1.weight
        graphs.append({x.dtype for x in inputs if isinstance(x, Tensor) and x.shape == weight.shape})
        return graph.forward

    fast[1].compile(backend=seen, dynamic=False)
    for _ in range(2):
        check_same(fast, lambda block, x: block(x))
    assert graphs == [{torch.bfloat16}], "compiled once, for weights that are cast"


@pytest.mark.gpu
def test_mast_casts_together_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = mast.create_model("mast_nano", num_classes=5, drop_path=0.0).cuda().train()
    x, found = torch.randn(4, 1, 128, 64, device="cuda"), []
    for together in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not together:
                patch.setattr(blocks, "weights_in_half", lambda block, x: torch.enable_grad())
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                out = model(x)
            out.float().square().mean().backward()
            found.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=1e-3)
