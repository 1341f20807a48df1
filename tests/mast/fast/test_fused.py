"""Branches of MAST on a CPU: the compiled ones equal the plain ones, and step aside where they do not fit."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mast
from mast.fast.cpu import fused

WIDTH = 16  # channels of a head: whole vectors on any processor


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    if not fused.encoder.fits(0):
        pytest.skip("kernels cannot be built here")


def small(**overrides) -> nn.Module:
    return make("mast_pico", **{"embed_dim": WIDTH, "depths": (1, 1, 2, 1), **overrides})


def make(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = mast.create_model(name, num_classes=3, **{"drop_path": 0.0, **options})
    for key, parameter in model.named_parameters():
        if key.endswith(".table"):
            nn.init.normal_(parameter)  # at initialisation they are too small to show an error
    return model


def nodes(tensor: Tensor) -> set[str]:
    """Names of the steps that led to ``tensor``."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
    return {node.name() for node in seen}


def is_fused(logits: Tensor) -> bool:
    return bool({"_AttentionBranchBackward", "_MlpBranchBackward"} & nodes(logits))


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits.square().sum().backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Within 1e-4 of the largest entry of each."""
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        # Shifting all keys changes no weight: the gradient of that bias is rounding alone.
        scale = largest if name.endswith("pool_k.norm.bias") else float(gradient.abs().max())
        torch.testing.assert_close(found[name].to(gradient), gradient, atol=1e-4 * scale, rtol=0, msg=name)


# Tiles of several heads; parts of a head with a rest; one query.
@pytest.mark.parametrize(("frames", "tile"), [(64, 2**17), (64, 300), (75, 2**17), (75, 300), (40, 1), (300, 2**17)])
def test_fused_equals_plain_in_float64(frames: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "TILE_SCORES", tile)
    model, x = small(), torch.randn(3, 1, 128, frames)
    exact = copy.deepcopy(model).double()
    logits, expected = model(x), exact(x.double())
    assert is_fused(logits) and not is_fused(expected)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    found, wanted = gradients(model, logits), gradients(exact, expected)
    assert_gradients_close(found, wanted)
    again = gradients(model, logits)
    assert all(torch.equal(found[name], again[name]) for name in found), "a second pass over the same graph"


def test_the_whole_of_mast_base_equals_its_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("mast_base"), torch.randn(1, 1, 128, 256)
    nn.init.normal_(model.head.weight)
    logits = model(x)
    found = gradients(model, logits)
    monkeypatch.setenv("MAST_NATIVE", "0")
    expected = model(x)
    assert is_fused(logits) and not is_fused(expected)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert_gradients_close(found, gradients(model, expected))


@pytest.mark.parametrize(("width", "frames", "tile"), [(WIDTH, 75, 2**17), (WIDTH, 40, 300), (24, 64, 2**17)])
def test_bfloat16_is_as_exact_as_the_plain_operators(
    width: int, frames: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "TILE_SCORES", tile)
    model, x = small(embed_dim=width), torch.randn(3, 1, 128, frames)
    nn.init.normal_(model.head.weight)
    exact = copy.deepcopy(model).double()
    expected = exact(x.double())
    wanted = gradients(exact, expected)
    errors = []
    for native in ("1", "0"):
        monkeypatch.setenv("MAST_NATIVE", native)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x)
        assert is_fused(logits) == (native == "1") and logits.dtype == torch.bfloat16
        found = gradients(model, logits)
        # Shifting all keys changes no weight: the gradient of that bias is rounding alone.
        names = [name for name in wanted if not name.endswith("pool_k.norm.bias")]
        assert all(found[name].dtype == torch.float32 for name in names)
        pairs = [(logits, expected), *((found[name], wanted[name]) for name in names)]
        errors.append([float((one.double() - other).norm() / other.norm()) for one, other in pairs])
    ours, plain = (torch.tensor(each) for each in errors)
    assert ours[0] < 0.03, "logits"
    assert ours.mean() < 1.5 * plain.mean(), "logits and gradients"
    assert (ours < 3 * plain + 0.01).all()


def test_stochastic_depth_drops_the_same_branches() -> None:
    model, x = small(drop_path=0.9).train(), torch.randn(8, 1, 128, 40)
    exact = copy.deepcopy(model).double()
    draws: list[Tensor] = []
    for module, twin in zip(model.modules(), exact.modules(), strict=True):
        if isinstance(module, mast.model.AddBranch):
            shares = module.shares(torch.empty(8, 1, 1, 1))
            draws += [] if shares is None else [shares]
            module.shares = lambda branch, shares=shares: shares  # type: ignore[method-assign]
            twin.shares = lambda branch, shares=shares: None if shares is None else shares.double()
    assert any((shares == 0).any() for shares in draws) and any((shares > 0).any() for shares in draws)
    logits, expected = model(x), exact(x.double())
    assert is_fused(logits)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)
    found, wanted = gradients(model, logits), gradients(exact, expected)
    assert_gradients_close(found, wanted)


def test_heads_of_half_a_vector_are_fused_too() -> None:
    model, x = small(embed_dim=3 * WIDTH // 2), torch.randn(2, 1, 128, 50)
    logits, expected = model(x), copy.deepcopy(model).double()(x.double())
    assert is_fused(logits)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


def test_input_gets_its_gradient_through_frozen_weights() -> None:
    model = small().requires_grad_(False)
    exact = copy.deepcopy(model).double()
    x = torch.randn(2, 1, 128, 40)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    model(ours).sum().backward()
    exact(theirs).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_biases_are_trained() -> None:
    model, x = small(), torch.randn(2, 1, 128, 40)
    wanted = gradients(model, model(x))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    found = gradients(model, model(x))
    assert found.keys() == {name for name in wanted if name.endswith("bias")}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_inference_and_a_turned_batch_give_the_same() -> None:
    model, x = small().eval(), torch.randn(2, 1, 40, 128).transpose(2, 3)  # not contiguous
    with torch.inference_mode():
        found = model(x)
    torch.testing.assert_close(found, model(x.contiguous()), atol=1e-6, rtol=1e-6)


def test_an_outer_checkpoint_recomputes_the_branches() -> None:
    model, x = small().train(), torch.randn(2, 1, 64, 60)
    expected = torch.autograd.grad(model.forward_features(x).square().sum(), list(model.stages.parameters()))
    held = checkpoint(model.forward_features, x, use_reentrant=False)
    found = torch.autograd.grad(held.square().sum(), list(model.stages.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["environment", "head", "hidden", "layer", "dtype", "autocast"])
def test_plain_operators_where_the_compiled_ones_do_not_fit(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {"head": {"embed_dim": 6}, "hidden": {"mlp_ratio": 1.12}}  # 17, 35, 71 and 143 channels
    model, x = small(**narrow.get(way, {})), torch.randn(1, 1, 128, 40)
    if way == "environment":
        monkeypatch.setenv("MAST_NATIVE", "0")
    if way == "dtype":
        model, x = model.double(), x.double()
    if way == "layer":  # as adapters and quantization do it

        class Adapted(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        for stage in model.stages:
            for block in stage:
                block.mlp.fc1.__class__ = Adapted
    with torch.autocast("cpu", dtype=torch.float16, enabled=way == "autocast"):
        logits = model(x)
    assert not is_fused(logits)


def test_branches_keep_little() -> None:
    block = small().train().stages[2][0]
    tokens = torch.randn(2, 8, 32, 2 * WIDTH, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.data_ptr() not in {p.data_ptr() for p in block.parameters()}:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = block.attn.fused(tokens, block.norm1)
    positions = sum(table.numel() for table in (block.attn.relative_freq(8, 8), block.attn.relative_time(16, 32)))
    # The input, the three projections at twice its width, and the result of the attention before its own projection.
    assert sum(kept.values()) <= tokens.numel() * (1 + 3 * 2) + out.numel() + positions
