"""What makes MAST fast and can be counted, so that a change cannot take it back unseen on a noisy machine.

Operators of a block, memory that it asks for and that it keeps for its backward pass, and graphs that its compiled form
needs. The numbers are exact for torch 2.13; they are bounds, so that a version that does with less passes.
"""

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mast
from mast.fast import accelerate, blocks, widened
from mast.fast.cpu import fused
from mast.model import Block

HEAD = 16  # channels of a head: whole vectors on any processor
# Neither computes on values: reinterpretations that torch does not call views, and memory that is not filled.
IDLE = {"aten::_unsafe_view", "aten::empty_like", "aten::new_empty", "aten::empty.memory_format"}


Watch = TypeVar("Watch", bound=TorchDispatchMode)


class Kernels(TorchDispatchMode):
    """Counts operators that compute or copy. The functions of mast.fast.cpu are none of torch's: they are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func.name() not in IDLE
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["fused", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way the blocks compute: with the compiled functions, or operator by operator as on a GPU."""
    monkeypatch.setenv("MAST_NATIVE", "0" if request.param == "plain" else "1")
    # Where operators are counted, MAST runs only such, and makes its constants anew: not here.
    for module in (blocks, widened):
        monkeypatch.setattr(module, "observed", lambda: False)
    if (fused.encoder.library() is not None) != (request.param == "fused"):
        pytest.skip("kernels cannot be built here")
    return request.param


def make_block(dim: int, stride: tuple[int, int] = (1, 1), widen: int = 1) -> tuple[Block, Tensor]:
    """A block and an input for it that it works on in one tile."""
    torch.manual_seed(0)
    block = accelerate(Block(dim, widen * dim, widen * dim // HEAD, (4, 10), stride, (1, 1), 4.0, 0.0))
    return block, torch.randn(1, 4, 10, dim, requires_grad=True)


def make_kind(kind: str) -> tuple[Block, Tensor]:
    """ "same": queries as they are; "pooled": pooled ones, and twice the channels."""
    return make_block(4 * HEAD) if kind == "same" else make_block(4 * HEAD, (2, 2), 2)


# Operators of a block: (inference, training step).
OPERATORS = {
    ("fused", "same"): (15, 56),
    ("fused", "pooled"): (19, 68),
    ("plain", "same"): (31, 90),
    ("plain", "pooled"): (33, 96),
}


def watched(block: Block, x: Tensor, watch: type[Watch]) -> tuple[Watch, Watch]:
    """What ``watch`` saw of inference, and of a training step."""
    block(x).sum().backward()  # constants are made once
    with watch() as inference, torch.no_grad():
        block(x)
    block.zero_grad()
    x.grad = None
    with watch() as training:
        out = block(x)
        torch.autograd.backward(out, torch.ones_like(out))
    return inference, training


@pytest.mark.parametrize("kind", ["same", "pooled"])
def test_operators_of_a_block(path: str, kind: str) -> None:
    inference, training = watched(*make_kind(kind), Kernels)
    found, (most_inference, most_training) = (inference.count, training.count), OPERATORS[path, kind]
    assert found[0] <= most_inference and found[1] <= most_training, found


class Allocations(TorchDispatchMode):
    """Adds up the bytes of new memory that operators return, those of the compiled functions' results among them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in storages((args, kwargs))}
        self.bytes += sum(storage.nbytes() for storage in storages(out) if storage.data_ptr() not in given)
        return out


def storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# Memory asked for by a block in units of its input: (inference, training step), as above.
ALLOCATED = {
    ("fused", "same"): (24.7, 60.1),
    ("fused", "pooled"): (25.7, 60.8),
    ("plain", "same"): (35.9, 93.8),
    ("plain", "pooled"): (39.8, 99.2),
}


@pytest.mark.parametrize("kind", ["same", "pooled"])
def test_memory_asked_for_by_a_block(path: str, kind: str) -> None:
    block, x = make_kind(kind)
    inference, training = watched(block, x, Allocations)
    parameters = sum(parameter.nbytes for parameter in block.parameters())  # their gradients
    found = tuple(round(each / x.nbytes, 1) for each in (inference.bytes, training.bytes - parameters))
    assert all(mine <= most for mine, most in zip(found, ALLOCATED[path, kind], strict=True)), found


def kept_values(block: Block, x: Tensor) -> int:
    """Values that a forward pass keeps for the backward one, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.nbytes() >= x.untyped_storage().nbytes():
            kept[storage.data_ptr()] = storage.nbytes() // 4
        alive.append(tensor)  # or its address could be given to another
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    return sum(kept.values())


# Kept by a block in units of its input, without tensors smaller than that. Fused: input, queries, keys and values,
# result of the attention, input and hidden layer of the MLP. Plain: up to CHEAP_DIM channels without the latter.
KEPT = {("fused", 192): 10.0, ("fused", 256): 10.0, ("plain", 192): 19.0, ("plain", 256): 23.0}


@pytest.mark.parametrize("dim", [192, 256])
def test_memory_kept_by_a_block(path: str, dim: int) -> None:
    block, x = make_block(dim)
    found = kept_values(block, x) / x.numel()
    assert found <= KEPT[path, dim], found


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def outputs_at(model: nn.Module, compiled, shape: list[int], axis: int, lengths: list[int], dynamo) -> None:
    """Runs both at each length, and a step of training of the compiled one where gradients are wanted."""
    for length in lengths:
        shape[axis] = length
        x = torch.randn(shape)
        dynamo.mark_dynamic(x, axis)
        found = compiled(x)
        torch.testing.assert_close(found, model(x), rtol=1e-3, atol=1e-4)
        if found.requires_grad:
            found.sum().backward()


def test_compiled_training_of_a_block_has_one_graph_for_all_lengths(dynamo) -> None:
    block = accelerate(Block(HEAD, HEAD, 1, (8, 128), (1, 2), (1, 1), 4.0, 0.0))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    outputs_at(block, compiled, [2, 8, 0, HEAD], 2, [50, 51, 77, 80, 128, 17], dynamo)
    assert counter.frame_count == 1


def test_compiled_model_has_one_graph_to_its_reference_length_and_one_beyond(dynamo) -> None:
    options = {"depths": (1,), "q_strides": ((1, 1),), "kv_strides": ((2, 4),), "frames": 512}
    model = mast.create_model("mast_pico", embed_dim=HEAD, num_classes=3, **options).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        outputs_at(model, compiled, [2, 1, 64, 0], 3, [200, 201, 300, 428, 512, 96], dynamo)
        assert counter.frame_count == 1
        outputs_at(model, compiled, [2, 1, 64, 0], 3, [600, 201], dynamo)
        assert counter.frame_count == 2


def test_equal_blocks_share_their_compiled_training_at_any_drop_path(dynamo) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(2, 4, 10, HEAD)
    for rate in (0.1, 0.2, 0.3):
        block = accelerate(Block(HEAD, HEAD, 1, (4, 10), (1, 1), (1, 1), 4.0, rate))
        block.compile(backend=counter, dynamic=False)
        block(x).sum().backward()
    assert counter.frame_count == 1
