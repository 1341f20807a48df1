"""Compiled branches and log-mel step aside where something else than autograd follows the computation."""

from collections.abc import Callable, Iterator

import pytest
import torch
from test_fused import WIDTH, is_fused, small
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import mast
from mast.fast.cpu import frontend as native
from mast.fast.cpu import fused
from mast.model import Block


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    if fused.encoder.library() is None or native.library() is None:
        pytest.skip("kernels cannot be built here")


@pytest.fixture
def model() -> nn.Module:
    return small().eval()


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def clips(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 128, 40)


@pytest.mark.filterwarnings("ignore")
def test_traces_hold_the_whole_model() -> None:
    model, first, other = small(depths=(1,), q_strides=[[1, 1]], kv_strides=[[4, 4]]).eval(), clips(), clips()
    with torch.no_grad():
        for trace in (lambda x: torch.jit.trace(model, x, check_trace=False), lambda x: make_fx(model)(x)):
            torch.testing.assert_close(trace(first)(other), model(other), atol=1e-5, rtol=1e-5)


def test_fake_tensors_have_no_memory_to_read(model: nn.Module) -> None:
    frontend = mast.LogMel()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        assert model(mode.from_tensor(clips())).shape == (2, 3)
        assert frontend(mode.from_tensor(torch.zeros(2, 8000))).shape == (2, 1, 128, 48)


def test_transforms_of_functions(model: nn.Module) -> None:
    x = clips()
    torch.testing.assert_close(vmap(model)(x[:, None])[:, 0], model(x), atol=1e-5, rtol=1e-5)
    ours = x.clone().requires_grad_()
    model(ours).sum().backward()
    torch.testing.assert_close(grad(lambda x: model(x).sum())(x), ours.grad, atol=1e-5, rtol=1e-3)
    waveform, frontend = torch.randn(3, 8000), mast.LogMel()
    torch.testing.assert_close(vmap(frontend)(waveform[:, None])[:, 0], frontend(waveform), atol=1e-4, rtol=0)


def test_counters_see_all_operations(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            model(clips())
        return counter.get_total_flops()

    found = counted()
    monkeypatch.setenv("MAST_NATIVE", "0")
    assert found == counted()


def replaced(block: nn.Module) -> None:
    block.norm2 = nn.RMSNorm(block.norm2.normalized_shape)


def other_epsilon(block: nn.Module) -> None:
    block.norm1.eps = 0.5


def patched(block: nn.Module) -> None:
    forward = block.mlp.forward
    block.mlp.forward = lambda x: 2 * forward(x)


def pruned(block: nn.Module) -> None:  # a pre-hook makes the weight from what is trained
    prune.l1_unstructured(block.mlp.fc1, "weight", 0.5)
    with torch.no_grad():
        block.mlp.fc1.weight_orig.mul_(2)


def without_bias(block: nn.Module) -> None:
    block.mlp.fc1 = nn.Linear(block.mlp.fc1.in_features, block.mlp.fc1.out_features, bias=False)


@pytest.mark.parametrize("change", [replaced, other_epsilon, patched, pruned, without_bias])
def test_a_changed_layer_counts(
    change: Callable[[nn.Module], None], model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = clips()
    before = model(x)
    torch.manual_seed(1)
    for stage in model.stages:
        for block in stage:
            change(block)
    logits = model(x)
    assert not is_fused(logits)
    assert not torch.allclose(logits, before, atol=1e-3)
    monkeypatch.setenv("MAST_NATIVE", "0")
    torch.testing.assert_close(logits, model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["attn", "attn.pool_q", "attn.pool_q.norm", "mlp", "norm1", "norm2", "add1", "add2"])
def test_hooks_are_called(name: str, model: nn.Module) -> None:
    seen: list[Tensor] = []
    module = model.stages[0][0].get_submodule(name)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(clips())
    assert seen
    handle.remove()
    seen.clear()
    model(clips())
    assert not seen


def test_weights_that_kernels_cannot_read_are_refused_by_torch(model: nn.Module) -> None:
    model.stages[0][0].norm1.bfloat16()
    with pytest.raises(RuntimeError, match="dtype"):
        model(clips())


def test_inputs_that_do_not_fit_are_refused_by_torch(model: nn.Module) -> None:
    block = model.stages[0][0]
    with pytest.raises(RuntimeError, match="normalized_shape"):
        block(torch.randn(1, 4, 4, 2 * WIDTH))


def test_an_input_of_odd_width_before_heads_that_fit() -> None:
    block = mast.accelerate(Block(20, 2 * WIDTH, 2, (8, 8), (1, 1), (1, 1), 2.0, 0.0))
    tokens = torch.randn(1, 8, 8, 20)
    torch.testing.assert_close(block(tokens), block.double()(tokens.double()).float(), atol=1e-5, rtol=1e-5)


def test_an_empty_batch(model: nn.Module) -> None:
    assert model(clips(0)).shape == (0, 3)
    assert mast.LogMel()(torch.zeros(0, 8000)).shape == (0, 1, 128, 48)


@pytest.mark.usefixtures("float64")
def test_log_mel_does_not_depend_on_the_default_dtype() -> None:
    native.sums_like_torch.cache_clear()
    torch.set_default_dtype(torch.float32)
    frontend, waveform = mast.LogMel(), torch.randn(2, 8000)
    expected = frontend(waveform)
    native.sums_like_torch.cache_clear()
    torch.set_default_dtype(torch.float64)
    found = frontend(waveform)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_log_mel_does_not_depend_on_the_default_device() -> None:
    frontend, waveform = mast.LogMel(), torch.randn(2, 8000)
    expected = frontend(waveform)
    try:
        torch.set_default_device("meta")
        found = frontend(waveform)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
