"""Fast blocks are in place only where they compute what the plain code says: an edit of the model counts, at once."""

import copy
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from test_fused import is_fused, small
from torch import Tensor, nn
from torch.nn import functional as F

import mast
from mast import model as plain
from mast.fast import comparison, cuda
from mast.fast.blocks import FastBlock
from mast.fast.cpu import encoder

WARNING = "computed by the plain code, more slowly"


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    if not encoder.fits(0):
        pytest.skip("kernels cannot be built here")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 1, 128, 40, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "mast")
    return lambda: caplog.messages


def pool_with_relu(self: plain.DepthwisePool, x: Tensor, heads: int) -> Tensor:
    image = F.conv2d(
        x.permute(0, 3, 1, 2), self.weight.repeat(heads, 1, 1, 1), stride=self.stride, padding=1, groups=x.shape[-1]
    )
    out = image.permute(0, 2, 3, 1)
    return self.norm(out.reshape(*out.shape[:3], heads, self.weight.shape[0])).relu()


def attention_without_residual_query(self: plain.PoolingAttention, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    q, k, v = self.pool_q(q, self.heads), self.pool_k(k, self.heads), self.pool_v(v, self.heads)
    r_freq, r_time = self.relative_freq(q.shape[1], k.shape[1]), self.relative_time(q.shape[2], k.shape[2])
    return self.proj(plain.attention(q, k, v, r_freq, r_time).flatten(3))


def training_alone(self: plain.Mlp, x: Tensor) -> Tensor:
    hidden = F.gelu(self.fc1(x))
    return self.fc2(hidden.detach())  # equal values, other gradients


EDITS: list[tuple[type[nn.Module], Callable]] = [
    (plain.DepthwisePool, pool_with_relu),
    (plain.PoolingAttention, attention_without_residual_query),
]


@pytest.mark.parametrize(("kind", "forward"), EDITS)
def test_an_edit_of_a_class_changes_the_logits(
    kind: type[nn.Module],
    forward: Callable,
    x: Tensor,
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = small()(x)
    assert is_fused(before) and not warnings()
    monkeypatch.setattr(kind, "forward", forward)
    edited = small()
    logits = edited(x)
    assert not torch.allclose(logits, before, atol=1e-4)
    assert torch.equal(logits, mast.accelerate(copy.deepcopy(edited), "reference")(x))
    assert WARNING in warnings()[0] and "stages.0.0" in warnings()[0]
    assert all(way.startswith("reference: ") for way in edited.backends().values())
    monkeypatch.undo()
    assert is_fused(mast.accelerate(edited)(x)), "the code is what it was"


@pytest.mark.parametrize(("kind", "forward"), EDITS)
def test_an_edit_in_a_running_process_reaches_models_that_are_fast(
    kind: type[nn.Module],
    forward: Callable,
    x: Tensor,
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    before = model(x)
    monkeypatch.setattr(kind, "forward", forward)
    logits = model(x)
    assert not torch.allclose(logits, before, atol=1e-4) and not is_fused(logits)
    assert set(map(type, model.blocks)) == {plain.Block}
    for name, warning in zip(model.backends(), warnings(), strict=True):
        assert warning.startswith(f"{name}: {WARNING}: fast and plain code differ in the values, by ")


@pytest.mark.parametrize(("kind", "forward"), EDITS)
def test_a_part_of_an_own_class_changes_the_logits(
    kind: type[nn.Module], forward: Callable, x: Tensor, warnings: Callable[[], list[str]]
) -> None:
    own = type("Mine", (kind,), {"forward": forward})
    model = mast.accelerate(small(), "reference")
    before = model(x)
    for module in model.modules():
        if type(module) is kind:
            module.__class__ = own
    logits = mast.accelerate(model)(x)
    assert not torch.allclose(logits, before, atol=1e-4) and not is_fused(logits)
    assert "stages.0.0" in warnings()[0] and "is a Mine" in warnings()[0]


def test_an_edit_that_changes_gradients_alone_counts(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.Mlp, "forward", training_alone)
    model = small()
    model(x).sum().backward()
    assert not model.blocks[0].mlp.fc1.weight.grad and "gradient" in model.backends()["stages.0.0"]


def test_a_patched_part_and_a_block_of_an_own_class_stay_plain(x: Tensor, warnings: Callable[[], list[str]]) -> None:
    model = mast.accelerate(small(), "reference")
    model.blocks[0].attn.pool_q.forward = lambda x, heads: (
        2 * plain.DepthwisePool.forward(model.blocks[0].attn.pool_q, x, heads)
    )
    model.blocks[1].__class__ = type("Mine", (plain.Block,), {})
    ways = mast.accelerate(model).backends()
    assert "forward of attn.pool_q is replaced" in ways["stages.0.0"] and "Mine" in ways["stages.1.0"]
    assert ways["stages.2.0"] == ways["stages.3.0"] == "cpu"
    assert sum(WARNING in message for message in warnings()) == 2


def test_back_and_forth_keeps_names_values_hooks_and_objects(x: Tensor) -> None:
    model = small().eval()
    blocks, state, calls = list(model.blocks), copy.deepcopy(model.state_dict()), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    fast = model(x)
    assert mast.accelerate(model, "reference") is model and set(map(type, model.modules())) & {FastBlock} == set()
    slow = model(x)
    torch.testing.assert_close(slow, fast, atol=1e-5, rtol=1e-4)
    assert torch.equal(mast.accelerate(model)(x), fast) and len(calls) == 3
    assert all(one is other for one, other in zip(blocks, model.blocks, strict=True))
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_random_numbers_and_gradients_stay_as_they_were(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mast.accelerate(small(drop_path=0.5), "reference")
    model(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    monkeypatch.setattr(comparison, "known_differences", {})
    state = torch.get_rng_state()
    with torch.inference_mode():
        mast.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state) and model.backends()["stages.0.0"] == "cpu"
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
    assert model.training


def test_a_comparison_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads, seen = mast.accelerate(small(), "reference"), torch.get_num_threads(), set()
    monkeypatch.setattr(comparison, "known_differences", {})
    monkeypatch.setattr(comparison, "differing", lambda *found: seen.add(torch.get_num_threads()) or "")
    torch.set_num_threads(2)
    try:
        mast.accelerate(model)
        assert seen == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_comparison_sees_each_kind_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(depths=(2, 1, 2, 1))
    seen: list[str] = []
    monkeypatch.setattr(comparison, "known_differences", {})
    monkeypatch.setattr(comparison, "compare", lambda block, way: seen.append(way) or "")
    mast.accelerate(model)
    mast.accelerate(copy.deepcopy(model))
    assert sorted(seen) == ["cpu"] * 5 + ["operators"] * 5 and len(model.blocks) == 6  # the first two are of a kind


def test_copies_and_pickles_are_fast_too(x: Tensor) -> None:
    model = small().eval()
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_fused(twin(x)) and torch.equal(twin(x), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_first_call_within_a_checkpoint(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().train()
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    twin = pickle.loads(pickle.dumps(model))
    monkeypatch.setattr(comparison, "known_differences", {})  # as in a new process
    out = torch.utils.checkpoint.checkpoint(twin, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), list(twin.parameters())), expected)


def test_backends_are_named() -> None:
    assert set(small().backends().values()) == {"cpu"} == set(mast.accelerate(small(), "cpu").backends().values())
    assert set(mast.backends(mast.accelerate(small(), "reference")).values()) == {"reference"}
    assert set(mast.create_model("mast_pico", embed_dim=6).backends().values()) == {"operators"}
    assert set(mast.MAST(embed_dim=16, depths=(1,), q_strides=((1, 1),), kv_strides=((1, 1),)).backends().values()) == {
        "reference"
    }


def test_a_backend_that_cannot_be_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend='gpu' must be one of auto, reference, cpu, cuda"):
        mast.accelerate(small(), "gpu")  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "fits", lambda dim: False)
    with pytest.raises(RuntimeError, match="backend=cuda"):
        mast.accelerate(small(), "cuda")
    monkeypatch.setenv("MAST_NATIVE", "0")
    with pytest.raises(RuntimeError, match="backend=cpu"):
        mast.accelerate(small(), "cpu")


def test_half_precision_is_judged_by_the_rounding_of_the_plain_code(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    for block in model.blocks:
        exact = comparison.sample_block(block)
        fast = mast.accelerate(copy.deepcopy(exact))
        tokens = comparison.sample_input(block)
        found = [
            comparison.values_and_gradients(each, tokens, half)
            for each, half in ((exact, False), (fast, True), (exact, True))
        ]
        assert comparison.differing_in_half(*found) == ""
        wrong = {name: -value if name.startswith("gradient of attn.qkv") else value for name, value in found[1].items()}
        assert "differ in the gradient" in comparison.differing_in_half(found[0], wrong, found[2])


@pytest.mark.gpu
def test_kernels_of_a_gpu_are_compared_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mast.accelerate(small(embed_dim=32).cuda())
    assert set(model.backends().values()) == {"cuda"}
    monkeypatch.setattr(plain.DepthwisePool, "forward", pool_with_relu)
    assert all(way.startswith("reference: ") for way in mast.accelerate(model).backends().values())
