"""MViTv2's attention within a fused kernel is torchvision's."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.video.mvit import MultiscaleAttention

from avssl.models.mvit import FusedAttention


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
