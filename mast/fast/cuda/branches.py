"""The parts of a block on a GPU, operator by operator: each one differentiable function with few launches.

``mast.model.Block`` says what they compute. Between the matrix products, which are torch's, work kernels that read and
write half precision: LayerNorm with the residual addition before it, and in the backward pass with the one behind it;
pooling; attention with its residual connection; GELU. Queries, keys and values are one product. Sums for the gradients
of biases are by-products. Compiled blocks do without: there the compiler fuses what lies between.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mast.fast.cuda import norms, positions
from mast.fast.cuda.attention import attend, attend_backward
from mast.fast.cuda.pooling import pool, pool_backward
from mast.fast.cuda.sums import fold_twice
from mast.model import Grid


class Settings(NamedTuple):
    """Settings of the attention.

    Attributes:
        heads: of the attention.
        q_stride, kv_stride: pooling of queries, and of keys and values.
        eps: of every norm.
    """

    heads: int
    q_stride: Grid
    kv_stride: Grid
    eps: float


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


Kind = tuple[torch.Size, torch.dtype]


def _kinds(parameters: Sequence[Tensor]) -> list[Kind]:
    return [(parameter.shape, parameter.dtype) for parameter in parameters]


def _as(values: Sequence[Tensor | None], kinds: list[Kind]) -> list[Tensor | None]:
    """Gradients in the shapes and types of what they are of."""
    return [
        None if value is None else value.view(shape).to(dtype)
        for value, (shape, dtype) in zip(values, kinds, strict=True)
    ]


class _Norm(torch.autograd.Function):
    """The input again, for what passes by, and its LayerNorm: so the sum of both gradients is the norm's work."""

    @staticmethod
    def forward(ctx: Any, eps: float, x: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        out, kept = norms.layer_norm(x, gain, shift, eps)
        ctx.save_for_backward(x, kept, gain, shift)
        ctx.set_materialize_grads(False)
        return x.view_as(x), out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, past: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return None, past, None, None
        x, kept, gain, shift = ctx.saved_tensors
        past = None if past is None else past.contiguous()
        dx, *affine = norms.layer_norm_backward(grad.contiguous(), x, kept, gain, past)
        return None, dx, *_as(affine, _kinds([gain, shift]))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: Settings,
        where: positions.Positions,
        x: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor,
        freq: Tensor,
        time: Tensor,
        proj: Tensor,
        *pools: Tensor,
    ) -> Tensor:
        strides = list(settings.q_stride), list(settings.kv_stride)
        with torch.autocast(x.device.type, enabled=False):
            qkv_half, proj_half = qkv.to(x.dtype), proj.to(x.dtype)
            joint = F.linear(x, qkv_half, qkv_bias.to(x.dtype))
            q, k, v, kept, packed = pool(joint, list(pools), settings.heads, *strides, settings.eps)
            r_freq, r_time = positions.gather(where, freq, time, q)
            a_freq, a_time = positions.scores(q, r_freq, r_time)
            out, lse, merged = attend(q, k, v, a_freq, a_time, True)
            branch = F.linear(merged.flatten(3), proj_half)
        ctx.strides, ctx.where = strides, where
        ctx.kinds = _kinds((qkv, qkv_bias, freq, time, proj, *pools))
        ctx.save_for_backward(
            x, qkv_half, proj_half, joint, kept, packed, q, k, v, r_freq, r_time, a_freq, a_time, out, lse, merged
        )
        return branch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, qkv, proj, joint, kept, packed, q, k, v, r_freq, r_time, a_freq, a_time, out, lse, merged = ctx.saved_tensors
        wanted = dict(zip(("x", "qkv", "bias", "freq", "time", "proj"), ctx.needs_input_grad[2:8], strict=True))
        with torch.autocast(x.device.type, enabled=False):
            grad = _rows(grad)
            d_proj = grad.t() @ _rows(merged.flatten(3)) if wanted["proj"] else None
            d_merged = (grad @ proj).view(merged.shape)
            dq, dk, dv, da_freq, da_time = attend_backward(q, k, v, a_freq, a_time, out, lse, d_merged, True)
            d_freq, d_time = positions.scores_backward_(ctx.where, dq, da_freq, da_time, q, r_freq, r_time)
            d_joint, sums = pool_backward(joint, kept, packed, [dq, dk, dv], *ctx.strides)
            flat, dim = _rows(d_joint), packed.shape[2]
            d_qkv = flat.t() @ _rows(x) if wanted["qkv"] else None
            d_bias = flat.sum(0) if wanted["bias"] else None  # summed in float32, whatever its type
            dx = (flat @ qkv).view(x.shape) if wanted["x"] else None
            of_pools = [each for part in sums for each in part.split([9 * dim, dim, dim])]
            return None, None, dx, *_as([d_qkv, d_bias, d_freq, d_time, d_proj, *of_pools], ctx.kinds)


class _AddAndMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        eps: float,
        keep_hidden: bool,
        shares: Tensor | None,
        mlp_shares: Tensor | None,
        x: Tensor,
        branch: Tensor,
        bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        fc1: Tensor,
        fc1_bias: Tensor,
        fc2: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # Without stochastic depth the last product is added to the residual as it is computed.
            early = fc2_bias if mlp_shares is None else None
            total, normed, kept, out = norms.add_and_norm(x.contiguous(), branch, bias, shares, gain, shift, eps, early)
            weights = [weight.to(x.dtype) for weight in (fc1, fc1_bias, fc2)]
            hidden = F.linear(normed, *weights[:2])
            if mlp_shares is None:
                _rows(out).addmm_(_rows(F.gelu(hidden)), weights[2].t())
            else:
                out = torch.addcmul(total, F.linear(F.gelu(hidden), weights[2], fc2_bias.to(x.dtype)), mlp_shares)
        ctx.eps, ctx.kinds = eps, _kinds((bias, gain, shift, fc1, fc1_bias, fc2, fc2_bias))
        ctx.save_for_backward(total, kept, shares, mlp_shares, gain, shift, *weights, hidden if keep_hidden else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total, kept, shares, mlp_shares, gain, shift, fc1, fc1_bias, fc2, hidden = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        with torch.autocast(total.device.type, enabled=False):
            grad = grad.contiguous()
            through = _rows(grad if mlp_shares is None else grad * mlp_shares)
            normed, _ = norms.layer_norm(total, gain, shift, ctx.eps)
            hidden = _rows(F.linear(normed, fc1, fc1_bias) if hidden is None else hidden)
            d_hidden = through @ fc2
            activated, inner_sums = norms.gelu_backward_(hidden, d_hidden)
            d_fc2 = through.t() @ activated if wanted[11] else None
            d_fc1 = d_hidden.t() @ _rows(normed) if wanted[9] else None
            d_normed = (d_hidden @ fc1).view(total.shape)
            dx, d_branch, sums = norms.add_and_norm_backward(d_normed, total, kept, gain, grad, shares, mlp_shares)
            widths = [len(fc1_bias), *[len(gain)] * 4]
            # Parameters that were cast get their gradients in half precision; no cast of its own for each.
            in_half = [ctx.kinds[place][1] == total.dtype for place in (4, 1, 2, 0, 6)]
            whole, half = (each.split(widths) for each in fold_twice(total.dtype, inner_sums, sums))
            d_fc1_bias, d_gain, d_shift, d_bias, d_fc2_bias = (
                h if cast else w for w, h, cast in zip(whole, half, in_half, strict=True)
            )
            found = [d_bias, d_gain, d_shift, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias]
            return None, None, None, None, dx, d_branch, *_as(found, ctx.kinds)


def normed(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x`` again, and its LayerNorm, both (..., dim): for a residual connection around what follows the norm."""
    return _Norm.apply(eps, x, gain, shift)  # type: ignore[no-any-return]


def attention_branch(
    x: Tensor,
    settings: Settings,
    where: positions.Positions,
    qkv: tuple[Tensor, Tensor],
    pools: Sequence[Tensor],
    proj: Tensor,
) -> Tensor:
    """Pooling attention and projection, whose bias is left to `add_and_mlp`: (B, F, T, dim) -> (B, F', T', dim_out).

    Args:
        x: normalised, in half precision, contiguous.
        qkv: weight and bias.
        pools: nine parameters, see ``mast.fast.cuda.pool``.
    """
    return _Attention.apply(settings, where, x, *qkv, *where.rows, proj, *pools)  # type: ignore[no-any-return]


def add_and_mlp(
    x: Tensor,
    branch: Tensor,
    eps: float,
    keep_hidden: bool,
    shares: tuple[Tensor | None, Tensor | None],
    *weights: Tensor,
) -> Tensor:
    """``y + MLP(norm(y))`` where ``y`` is ``x + branch + bias``.

    Args:
        keep_hidden: keep the wide layer for the backward pass; else it is computed again.
        shares: factors of each sample's two branches (B, 1, ...), as stochastic depth draws them, or None.
        weights: bias of the branch; weight and bias of the norm, the first and the second layer.
    """
    return _AddAndMlp.apply(eps, keep_hidden, *shares, x, branch, *weights)  # type: ignore[no-any-return]
