"""MAST: shapes at any size, gradients, stochastic depth, head, relative positions against the written-out formula."""

import gc
import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mast
from avssl.augment.audio import drop_patches
from mast import model as plain
from mast.exportable import ExportableAttention
from mast.fast import recompute, widened
from mast.fast.blocks import FastMlp

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import blocks

TINY = {"embed_dim": 8, "depths": (1, 1, 2, 1)}


def tiny(**overrides) -> nn.Module:
    torch.manual_seed(0)
    return mast.create_model("mast_pico", **{**TINY, **overrides})


def large_tables(model: nn.Module) -> nn.Module:
    """Relative positions that matter: at initialisation they are too small to show an error."""
    for name, parameter in model.named_parameters():
        if name.endswith(".table"):
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("size", [(128, 1024), (128, 1023), (128, 333), (128, 25), (128, 16), (64, 100), (80, 37)])
def test_any_size_gives_logits_and_features(size: tuple[int, int]) -> None:
    model = tiny(num_classes=5).eval()
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert model(x).shape == (2, 5)
    assert tokens.shape[0] == 2 and tokens.shape[2] == model.num_features == 64
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.mean(1))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5, rtol=0)  # after the norm


def test_longer_than_the_reference_interpolates() -> None:
    model = tiny(frames=128).eval()
    assert model(torch.randn(1, 1, 128, 400)).isfinite().all()


def test_two_clips_in_a_batch_do_not_mix() -> None:
    model = large_tables(tiny(num_classes=3)).double().eval()
    x = torch.randn(3, 1, 128, 96, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(2, 128, 100), (2, 3, 128, 100)])
def test_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a spectrogram of shape \(B, 1, mels, frames\)"):
        tiny()(torch.zeros(shape))


def test_too_few_frames_is_an_error_that_says_how_many() -> None:
    with pytest.raises(ValueError, match="3 frames, the patch embedding needs at least 4"):
        tiny()(torch.zeros(1, 1, 128, 3))


@pytest.mark.parametrize("frames", [128, 203])
def test_fast_model_equals_the_plain_one(frames: int) -> None:
    model = large_tables(tiny(num_classes=4)).double().eval()
    x = torch.randn(2, 1, 128, frames, dtype=torch.float64)
    fast = model(x)
    fast.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    expected = mast.accelerate(model, "reference")(x)
    expected.square().sum().backward()
    torch.testing.assert_close(fast, expected, atol=1e-9, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-9, rtol=1e-9)
    for name, parameter in model.named_parameters():
        if name.endswith(".table"):
            nn.init.zeros_(parameter)
    assert (model(x) - expected).abs().max() > 1e-3, "relative positions have no effect"


@pytest.mark.parametrize(
    ("q_grid", "k_grid"), [((4, 12), (4, 3)), ((2, 5), (4, 10)), ((1, 1), (1, 1)), ((3, 7), (3, 7))]
)
def test_widened_heads_equal_the_formula(q_grid, k_grid) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = random(2, *q_grid, 3, 8), random(2, *k_grid, 3, 8), random(2, *k_grid, 3, 8)
    arguments = (q, k, v, random(q_grid[0], k_grid[0], 8), random(q_grid[1], k_grid[1], 8))
    expected = plain.attention(*arguments)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), arguments)
    fused = widened.attention(*arguments)
    torch.testing.assert_close(fused, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad((fused * weight).sum(), arguments), expected_gradients, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("kv_stride", [1, 2])
@pytest.mark.parametrize("way", ["plain", "fused", "operators", "exported", "compiled"])
def test_unscaled_positions_are_those_of_the_authors_code(way: str, kv_stride: int) -> None:
    torch.manual_seed(0)
    side, strides = 8, ((1, 1), (kv_stride, kv_stride))

    def build(scaled: bool) -> nn.Module:
        block = plain.Block(32, 32, 2, (side, side), *strides, 4.0, 0.0, scaled_positions=scaled)
        return large_tables(block) if scaled is False else block

    block = build(False)
    peer = blocks.of_timm(blocks.Size(32, 2, side, kv_stride), block, scaled_positions=False)
    x = torch.randn(2, side, side, 32)
    if way != "plain":
        mast.accelerate(block)
    printed = build(True)  # the other rule: the same weights are not the same block
    printed.load_state_dict(block.state_dict())
    if way in ("plain", "operators"):
        block, peer, printed, x = block.double(), peer.double(), printed.double(), x.double()
    elif way == "exported":
        for module in (block, printed):
            module.attn = ExportableAttention(module.attn)
    run = torch.compile(block, backend="eager") if way == "compiled" else block
    with torch.no_grad():
        expected = peer(x.flatten(1, 2), [side, side])[0].view_as(x)
        torch.testing.assert_close(run(x), expected, atol=1e-4, rtol=1e-4)
        assert (printed(x) - expected).abs().max() > 0.01


def test_a_model_saved_without_the_rule_of_positions_has_the_printed_one() -> None:
    model = tiny()
    former = {key: value for key, value in model.config.items() if key != "scaled_positions"}
    assert model.config["scaled_positions"] is True
    assert mast.create_model("mast_pico", **former).config == model.config
    other = mast.create_model("mast_pico", **former | {"scaled_positions": False})
    assert {m.factor for m in other.modules() if isinstance(m, plain.RelativeTable)} == {8**0.5}


def test_mlp_keeps_one_of_its_two_wide_activations() -> None:
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()  # one tensor may be kept by several
        return tensor

    mlp, x = FastMlp(8, 1000), torch.randn(5, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = mlp(x)
    assert list(kept.values()).count(5000) == 1
    expected = mlp.fc2(nn.functional.gelu(mlp.fc1(x)))
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), [x, mlp.fc2.weight]), torch.autograd.grad(expected.sum(), [x, mlp.fc2.weight])
    )


def test_an_outer_checkpoint_is_rid_of_everything_within() -> None:
    model = tiny().train()
    x = torch.randn(2, 1, 64, 60)

    def gradients(forward) -> list[Tensor]:
        torch.manual_seed(0)
        return torch.autograd.grad(forward(x).square().sum(), list(model.parameters()))

    expected = gradients(model.forward_features)
    before = live_elements()
    held = checkpoint(model.forward_features, x, use_reentrant=False)
    assert live_elements() - before <= 2 * held.numel()  # the result, and what it is a view of
    del held
    found = gradients(lambda x: checkpoint(model.forward_features, x, use_reentrant=False))
    torch.testing.assert_close(found, expected)


def live_elements() -> int:
    """Elements of all floating-point tensors that are alive."""
    gc.collect()
    alive = (item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter))
    return sum(tensor.numel() for tensor in alive if tensor.is_floating_point())


def test_recomputed_value_serves_several_users_and_a_second_pass() -> None:
    calls = []

    def double(tensor: Tensor) -> Tensor:
        calls.append(1)
        return tensor * 2

    x, weight = torch.randn(4, 3), torch.randn(3, 3, requires_grad=True)
    result = double(x)
    with recompute.recomputed(double, x, result):
        out = (result @ weight).sum() + (result.view(2, 2, 3) @ weight).sin().sum()
    expected = torch.autograd.grad((x * 2 @ weight).sum() + (x * 2 @ weight).sin().sum(), weight)[0]
    for passes in (1, 2):
        torch.testing.assert_close(torch.autograd.grad(out, weight, retain_graph=True)[0], expected)
        assert len(calls) == 1 + passes, "computed once for both users in each pass"


def test_relative_table_is_indexed_by_distance() -> None:
    table = plain.RelativeTable(16, q_stride=2, k_stride=1, dim=1)
    with torch.no_grad():
        table.table.copy_(torch.arange(31.0)[:, None] - 15)  # the entry is the distance itself
    q, k = torch.arange(8)[:, None] * 2, torch.arange(16)[None]
    assert torch.equal(table(8, 16)[..., 0], (q - k).float())
    assert torch.equal(table(3, 5)[..., 0], (q[:3] - k[:, :5]).float()), "a shorter input means the same distances"
    longer = table(16, 32)[..., 0]
    assert longer[0, 0] == 0 and longer.abs().max() == 15 and (longer.diff(dim=1) < 0).all()


@pytest.mark.parametrize(
    ("q_stride", "k_stride", "sizes"), [(1, 1, (5, 5)), (2, 1, (4, 8)), (2, 1, (4, 7)), (4, 2, (1, 2))]
)
@pytest.mark.parametrize("length", [6, 16, 3])  # also shorter than the input, so that the table is interpolated
def test_diagonals_hold_the_vectors_of_all_pairs(
    q_stride: int, k_stride: int, sizes: tuple[int, int], length: int
) -> None:
    table = plain.RelativeTable(length, q_stride, k_stride, dim=3)
    pairs, rows = table(*sizes), widened.diagonals(table, *sizes)
    assert torch.equal(widened.vectors(table, *sizes), pairs)
    assert rows is not None
    step = q_stride // k_stride
    for q, k in itertools.product(*map(range, sizes)):
        assert torch.equal(rows[(sizes[0] - 1 - q) * step + k], pairs[q, k])
    assert len(rows) == (sizes[0] - 1) * step + sizes[1]


def test_keys_pooled_more_than_queries_lie_on_no_diagonal() -> None:
    assert widened.diagonals(plain.RelativeTable(16, q_stride=1, k_stride=2, dim=3), 16, 8) is None


def test_constants_made_in_inference_mode_do_not_break_training() -> None:
    model = tiny(num_classes=2)
    x = torch.randn(1, 1, 128, 61)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = tiny(num_classes=4)
    nn.functional.cross_entropy(model(torch.randn(2, 1, 128, 100)), torch.tensor([0, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias that shifts all keys alike changes no softmax, so the key third of its gradient may vanish.
        assert parameter.grad.abs().max() > 0, name


def test_blank_patches_have_no_larger_gradient_than_others() -> None:
    """A layer norm divides by the spread of a token's channels, which a blank one has of the bias alone."""
    norms = []
    for share in (0.0, 0.5):
        model = tiny(num_classes=2)
        torch.manual_seed(1)
        x = drop_patches(torch.randn(2, 1, 128, 128), share, (32, 32))
        nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
    assert norms[1] < 5 * norms[0]


def test_frozen_parameters_get_no_gradient_and_the_others_the_same() -> None:
    model, x = tiny(num_classes=4), torch.randn(2, 1, 128, 100)
    model(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    frozen = {name for name in expected if name.endswith(("table", "pool_k.weight", "pool_q.norm.bias"))}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name])


def test_bfloat16_autocast_stays_close() -> None:
    model = tiny(num_classes=4).eval()
    x = torch.randn(2, 1, 128, 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    torch.testing.assert_close(low.float(), model(x), atol=0.05, rtol=0.05)


def test_stochastic_depth_acts_in_training_only() -> None:
    model = tiny(num_classes=4, drop_path=0.9)
    x = torch.randn(1, 1, 128, 50).expand(8, -1, -1, -1)
    assert model.train()(x).std(dim=0).max() > 1e-4
    assert model.eval()(x).std(dim=0).max() < 1e-5


def test_stochastic_depth_keeps_the_expectation() -> None:
    add = mast.model.AddBranch(0.25).train()
    torch.manual_seed(0)
    out = add(torch.zeros(40000, 1), torch.ones(40000, 1))
    assert abs(out.mean() - 1) < 0.02
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])


def test_initialisation_follows_the_seed_and_logits_start_small() -> None:
    first, second = tiny(num_classes=10), tiny(num_classes=10)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.eval()(torch.randn(4, 1, 128, 100)).abs().max() < 1


def test_reset_classifier() -> None:
    model = tiny(num_classes=4)
    x = torch.randn(1, 1, 128, 50)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7) and model.num_classes == model.config["num_classes"] == 7
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)


def test_no_weight_decay_names_exist() -> None:
    model = tiny(num_classes=4)
    names, free = dict(model.named_parameters()), model.no_weight_decay()
    assert free <= set(names) and {"norm.weight", "head.bias"} <= free
    assert "head.weight" not in free and any(name.endswith("relative_time.table") for name in free)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embed_dim": 9, "heads": 2}, "embed_dim=9"),
        ({"depths": (1, 0)}, "depths"),
        ({"depths": (1, 1)}, "q_strides: expected 2 pairs"),
        ({"q_strides": ((2, 2), (1, 1), (1, 1), (1, 1))}, "the first stage keeps"),
        ({"kv_strides": ((0, 1),) * 4}, "kv_strides"),
        ({"patch_stride": (8,)}, "patch_size, patch_stride"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"num_classes": -1}, "num_classes"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
    ],
)
def test_bad_arguments_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mast.create_model("mast_pico", **overrides)


def test_overrides_are_real() -> None:
    model = tiny(patch_stride=(16, 16), patch_padding=(0, 0), kv_strides=((1, 1),) * 4, mlp_ratio=2.0)
    assert model.patch_embed.grid(128, 160) == (8, 10)
    assert model.stages[0][0].mlp.fc1.out_features == 16 and model.stages[0][0].kv_stride == (1, 1)
    assert model.eval()(torch.randn(1, 1, 128, 160)).shape == (1, 64)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    model = large_tables(tiny(num_classes=4)).eval()
    x = torch.randn(2, 1, 128, 203)
    expected = model(x)
    torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)
