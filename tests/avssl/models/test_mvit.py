"""MViTv2's attention within a fused kernel is torchvision's."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.mvit import MSBlockConfig, MultiscaleAttention, MViT, _add_rel_pos

import mast
from avssl.models import mvit
from avssl.models.mvit import FusedAttention, from_slowfast, scale_positions, to_slowfast
from mast.fast import cuda


def attention(stride_q: list[int], stride_kv: list[int], residual_with_cls_embed: bool) -> MultiscaleAttention:
    """Small, in double precision, with positions that matter."""
    torch.manual_seed(0)
    made = MultiscaleAttention(
        [4, 8, 8],
        embed_dim=12,
        output_dim=16,
        num_heads=2,
        kernel_q=[3, 3, 3],
        kernel_kv=[3, 3, 3],
        stride_q=stride_q,
        stride_kv=stride_kv,
        residual_pool=True,
        residual_with_cls_embed=residual_with_cls_embed,
        rel_pos_embed=True,
    ).double()
    for table in (made.rel_pos_t, made.rel_pos_h, made.rel_pos_w):
        nn.init.normal_(table)
    return made


@pytest.mark.parametrize("stride_q", [[1, 1, 1], [1, 2, 2]])
@pytest.mark.parametrize("stride_kv", [[1, 1, 1], [1, 4, 4]])
@pytest.mark.parametrize("residual_with_cls_embed", [False, True])
def test_equals_torchvisions(stride_q: list[int], stride_kv: list[int], residual_with_cls_embed: bool) -> None:
    theirs = attention(stride_q, stride_kv, residual_with_cls_embed)
    ours = FusedAttention(copy.deepcopy(theirs))
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict())
    x = torch.randn(2, 1 + 4 * 8 * 8, 12, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        out, size = module(x, (4, 8, 8))
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        (out * weights).sum().backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        found.append((out, size, gradients | {"x": x.grad}))
        x.grad = None
    torch.testing.assert_close(found[1], found[0])


def test_half_precision_stays_in_it() -> None:
    """Under autocast the kernel gets bfloat16, and the result is near."""
    made = FusedAttention(attention([1, 2, 2], [1, 4, 4], False)).float()
    x = torch.randn(2, 1 + 4 * 8 * 8, 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = made(x, (4, 8, 8))
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        expected, _ = made(x, (4, 8, 8))
    assert float((found.float() - expected).norm() / expected.norm()) < 0.02


def test_without_relative_positions_it_is_refused() -> None:
    plain = MultiscaleAttention([2, 4, 4], 8, 8, 1, [3] * 3, [3] * 3, [1] * 3, [1, 2, 2], True, False, False)
    with pytest.raises(ValueError, match="no widened heads"):
        FusedAttention(plain)


def small_mvit() -> MViT:
    """torchvision's MViTv2 of two blocks and 4 frames of 32 x 32, with positions that matter."""
    torch.manual_seed(0)
    blocks = [
        MSBlockConfig(1, 16, 32, [3] * 3, [3] * 3, [1, 1, 1], [1, 4, 4]),
        MSBlockConfig(2, 32, 32, [3] * 3, [3] * 3, [1, 2, 2], [1, 2, 2]),
    ]
    model = MViT(
        (32, 32),
        4,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=5,
    ).double()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "class_token" in name:
            nn.init.normal_(parameter)
    return model.eval()


def with_ours(model: MViT, scaled: bool) -> MViT:
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.attn = FusedAttention(block.attn, scaled)
    return twin


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_of_torchvision_give_its_logits_under_either_rule_and_go_back(scaled: bool) -> None:
    theirs = small_mvit()
    state = theirs.state_dict()
    ours = with_ours(theirs, scaled)
    ours.load_state_dict(scale_positions(state) if scaled else state)
    x = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        if scaled:  # the rules are not the same: weights of the one are wrong in the other
            ours.load_state_dict(state)
            assert (ours(x) - theirs(x)).abs().max() > 1e-3
    back = scale_positions(scale_positions(state), inverse=True)
    torch.testing.assert_close(back, dict(state), rtol=1e-15, atol=0)


def test_the_printed_rule_divides_the_positions_too() -> None:
    """MViTv2's equation 4, softmax((q k + positions) / sqrt(d)) v, with the whole matrix of scores."""
    plain = attention([1, 1, 1], [1, 1, 1], True)
    ours = FusedAttention(copy.deepcopy(plain), scaled_positions=True)
    q = torch.randn(1, 2, 1 + 4 * 8 * 8, 8, dtype=torch.float64)
    k, v = torch.randn_like(q), torch.randn_like(q)
    scores = q @ k.transpose(2, 3)
    size = (4, 8, 8)
    scores = _add_rel_pos(scores, q, size, size, plain.rel_pos_h, plain.rel_pos_w, plain.rel_pos_t)
    expected = (scores / 8**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(ours.attend(q, k, v, size, size), expected)


def test_slowfasts_names_and_back() -> None:
    """The names are those of SlowFast's MVITv2_S_16x4 checkpoint."""
    state = dict(small_mvit().state_dict())
    theirs = to_slowfast(state)
    attention_parts = ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rel_pos_h", "rel_pos_w", "rel_pos_t"]
    for part in "qkv":
        attention_parts += [f"pool_{part}.weight", f"norm_{part}.weight", f"norm_{part}.bias"]
    names = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    names |= {"head.projection.weight", "head.projection.bias", "blocks.0.proj.weight", "blocks.0.proj.bias"}
    for block in (0, 1):
        names |= {f"blocks.{block}.attn.{part}" for part in attention_parts}
        for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            names |= {f"blocks.{block}.{layer}.{kind}" for kind in ("weight", "bias")}
    assert set(theirs) == names
    assert theirs["cls_token"].shape == (1, 1, 16)
    back = from_slowfast(theirs)
    assert list(back) == list(state) and all(torch.equal(back[name], state[name]) for name in state)


def pool3d(x: Tensor, parameters: list[Tensor], heads: int, size: list[int], q_step: int, kv_step: int, eps: float):
    """What the GPU's kernels compute (their own tests compare them with it), out of torch's operators."""
    pooled = []
    for part, step in enumerate((q_step, kv_step, kv_step)):
        weight, gain, bias = parameters[3 * part : 3 * part + 3]
        dim = len(gain)
        tokens = x.chunk(3, dim=-1)[part].unflatten(2, (heads, dim)).transpose(1, 2)
        volume = tokens[:, :, 1:].flatten(0, 1).transpose(1, 2).unflatten(2, size)
        volume = F.conv3d(volume, weight, stride=(1, step, step), padding=1, groups=dim)
        rows = torch.cat((tokens[:, :, :1], volume.flatten(2).transpose(1, 2).unflatten(0, (len(x), heads))), dim=2)
        pooled.append(F.layer_norm(rows, (dim,), gain, bias, eps))
    return pooled


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kernels for GPUs in effect here; counts their calls."""
    calls: list[int] = []

    def counted(x: Tensor, *rest):
        calls.append(1)
        return pool3d(x, *rest)

    monkeypatch.setattr(cuda, "pool3d", counted, raising=False)
    monkeypatch.setattr(cuda, "usable", lambda x, dim: True)
    monkeypatch.setattr(mvit, "known_differences", {})
    return calls


@pytest.mark.parametrize("strides", [([1, 1, 1], [1, 4, 4]), ([1, 2, 2], [1, 1, 1])])
def test_pooled_by_kernels_it_is_torchvisions(strides: tuple[list[int], list[int]], kernels: list[int]) -> None:
    theirs = attention(*strides, False)
    ours = mast.accelerate(FusedAttention(copy.deepcopy(theirs)))
    x = torch.randn(2, 1 + 4 * 8 * 8, 12, dtype=torch.float64)
    found = []
    for module in (theirs, ours):
        out, size = module(x, (4, 8, 8))
        out.square().sum().backward()
        found.append((out, size, {name: parameter.grad for name, parameter in module.named_parameters()}))
    torch.testing.assert_close(found[1], found[0])
    assert len(kernels) == 2 and not ours.plain_because, "compared, then used"


def test_a_compiled_block_has_them_in_its_one_graph(kernels: list[int]) -> None:
    ours = mast.accelerate(FusedAttention(attention([1, 1, 1], [1, 2, 2], False)))
    x = torch.randn(1, 1 + 4 * 8 * 8, 12, dtype=torch.float64)
    expected = ours(x, (4, 8, 8))[0]
    before = len(kernels)
    found = torch.compile(ours, backend="eager", fullgraph=True)(x, (4, 8, 8))[0]
    torch.testing.assert_close(found, expected)
    assert len(kernels) > before


def test_kernels_that_differ_are_left_with_a_warning(
    kernels: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(x: Tensor, *rest):
        q, k, v = pool3d(x, *rest)
        return q, k.flip(2), v

    monkeypatch.setattr(cuda, "pool3d", wrong)
    theirs = attention([1, 1, 1], [1, 2, 2], False)
    ours = mast.accelerate(FusedAttention(copy.deepcopy(theirs)))
    x = torch.randn(1, 1 + 4 * 8 * 8, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x, (4, 8, 8)), theirs(x, (4, 8, 8)))
    assert "fast and plain code differ in the values" in caplog.text
    assert "differ" in mast.backends(ours)["FusedAttention"]


def test_what_kernels_do_not_cover_stays_plain(kernels: list[int]) -> None:
    theirs = attention([1, 1, 1], [1, 2, 2], False)
    edited = mast.accelerate(FusedAttention(copy.deepcopy(theirs)))
    edited.pool_k.register_forward_hook(lambda module, inputs, output: None)
    alone = mast.accelerate(FusedAttention(copy.deepcopy(theirs)), "reference")
    x = torch.randn(1, 1 + 4 * 8 * 8, 12, dtype=torch.float64)
    for module in (edited, alone, FusedAttention(theirs)):
        module(x, (4, 8, 8))
    assert not kernels


@pytest.mark.gpu
@pytest.mark.parametrize("strides", [([1, 1, 1], [1, 8, 8]), ([1, 2, 2], [1, 4, 4]), ([1, 1, 1], [1, 1, 1])])
def test_on_a_gpu_the_kernels_are_used_and_equal_the_plain_pooling(strides: tuple[list[int], list[int]]) -> None:
    made = MultiscaleAttention([4, 8, 8], 96, 192, 2, [3] * 3, [3] * 3, *strides, True, False, True)
    ours = mast.accelerate(FusedAttention(made).cuda())
    assert mast.backends(ours) == {"FusedAttention": "cuda"}
    x = torch.randn(2, 1 + 4 * 8 * 8, 96, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        found, expected = ours(x, (4, 8, 8))[0], mast.accelerate(ours, "reference")(x, (4, 8, 8))[0]
    assert float((found.float() - expected.float()).norm() / expected.float().norm()) < 0.02
