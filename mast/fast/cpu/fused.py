"""The two branches of a block on a CPU, each one differentiable function that keeps little and copies nothing.

``mast.model.Block`` says what they compute. Between the matrix products, which are torch's, work the compiled
functions of ``mast.fast.cpu.encoder``; where there is no compiler, the blocks run operator by operator.

A step of training is bound by memory here: what is cheap to compute again (norms, pooling, activations) is, so that a
branch keeps its input, the widest products and nothing in between.

Under autocast to bfloat16 everything that flows through a branch is bfloat16, the attention's scores included, as if
autocast had met ``q @ k.t()``; sums, softmax and norms are computed in float32, and parameters have float32 gradients.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mast.fast.cpu import encoder
from mast.model import Grid

# Scores worked on at a time: 4 MiB. More would leave the cache; fewer cost more calls, which pack the keys anew.
TILE_SCORES = 2**20


def usable(x: Tensor, *widths: int) -> bool:
    """Whether the branches take ``x``: on a CPU, not compiled, kernels that fit these widths.

    It is float32, or under autocast to bfloat16 of that type already.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled("cpu")
    wanted = torch.get_autocast_dtype("cpu") if autocast else torch.float32
    return x.dtype == wanted and encoder.fits(*widths, dtype=wanted)


class AttentionSettings(NamedTuple):
    """Settings of the attention branch.

    Attributes:
        heads: of the attention.
        q_stride, kv_stride: pooling of queries, and of keys and values.
        eps: of every norm.
        residual: add the branch to its input, rather than return it alone.
    """

    heads: int
    q_stride: Grid
    kv_stride: Grid
    eps: float
    residual: bool


class AttentionWeights(NamedTuple):
    """Parameters of the attention branch.

    Attributes:
        norm, norm_bias: of the LayerNorm before it.
        qkv, qkv_bias: (3 * dim_out, dim), (3 * dim_out,).
        q_taps, k_taps, v_taps: (dim_head, 1, 3, 3); their norms are (dim_head,).
        freq, time: relative positions (F_q, F_k, dim_head) and (T_q, T_k, dim_head), or, of time, the diagonals
            (distances, dim_head) of `mast.fast.widened.diagonals`.
        proj, proj_bias: (dim_out, dim_out), (dim_out,).
    """

    norm: Tensor
    norm_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    q_taps: Tensor
    q_norm: Tensor
    q_norm_bias: Tensor
    k_taps: Tensor
    k_norm: Tensor
    k_norm_bias: Tensor
    v_taps: Tensor
    v_norm: Tensor
    v_norm_bias: Tensor
    freq: Tensor
    time: Tensor
    proj: Tensor
    proj_bias: Tensor

    def as_operands(self, dtype: torch.dtype) -> "AttentionWeights":
        """The same with everything that enters a matrix product in ``dtype``."""
        products = ("qkv", "qkv_bias", "freq", "time", "proj")
        return self._replace(**{name: getattr(self, name).to(dtype) for name in products})

    def poolings(self, settings: AttentionSettings) -> list[encoder.Pooling]:
        """Of queries, keys and values."""
        strides = (settings.q_stride, settings.kv_stride, settings.kv_stride)
        parts = (self[4:7], self[7:10], self[10:13])
        return [
            encoder.Pooling(taps.flatten(1).t().contiguous(), scale, bias, stride, settings.eps)
            for (taps, scale, bias), stride in zip(parts, strides, strict=True)
        ]


class Operands(NamedTuple):
    """What attention works on.

    Attributes:
        q: (B, heads, F_q, T_q, dim).
        k, v: (B, heads, F_k, T_k, dim).
        by_freq: (B * heads, F_q, T_q, F_k) score of each query with each key frequency.
        by_time: (B * heads, F_q, T_q, T_k) score of each query with each key time; a view, the last dimension
            contiguous.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    by_freq: Tensor
    by_time: Tensor

    @property
    def factor(self) -> float:
        """1 / sqrt(dim)."""
        return float(self.q.shape[-1] ** -0.5)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Ranges of heads and queries with about ``TILE_SCORES`` scores: small heads together, large ones in parts."""
        heads, queries, keys = _flat(self.q).shape[0], _flat(self.q).shape[1], _flat(self.k).shape[1]
        some_heads = max(1, TILE_SCORES // (queries * keys))
        some_rows = queries if some_heads > 1 else max(1, TILE_SCORES // keys)
        for head in range(0, heads, some_heads):
            for row in range(0, queries, some_rows):
                yield slice(head, min(head + some_heads, heads)), slice(row, min(row + some_rows, queries))

    def buffer(self) -> Tensor:
        """Room for the scores of the largest tile."""
        heads, rows = next(self.tiles(), (slice(0, 0), slice(0, 0)))
        return self.q.new_empty((heads.stop - heads.start) * (rows.stop - rows.start) * _flat(self.k).shape[1])

    def weights(self, heads: slice, rows: slice, buffer: Tensor) -> Tensor:
        """Attention weights of a tile (heads, rows, keys), in ``buffer``."""
        q, k = _flat(self.q)[heads, rows], _flat(self.k)[heads]
        scores = torch.bmm(q, k.transpose(1, 2), out=_room(buffer, q, k))
        encoder.softmax_(scores, self.by_freq[heads], self.by_time[heads], rows.start, self.factor)
        return scores


def _flat(x: Tensor) -> Tensor:
    """(B, heads, F, T, dim) -> (B * heads, F * T, dim)."""
    return x.flatten(2, 3).flatten(0, 1)


def _room(buffer: Tensor, q: Tensor, k: Tensor) -> Tensor:
    shape = (q.shape[0], q.shape[1], k.shape[1])
    return buffer[: shape[0] * shape[1] * shape[2]].view(shape)


def _columns_first(x: Tensor) -> Tensor:
    """(n, F, T, dim) -> a view (T, n * F, dim)."""
    return x.flatten(0, 1).transpose(0, 1)


def _columns_last(x: Tensor, rows: int) -> Tensor:
    """The way back: (T, n * F, dim) -> a view (n, F, T, dim)."""
    return x.transpose(0, 1).unflatten(0, (-1, rows))


def _pairs(scores: Tensor, keys: int) -> Tensor:
    """Scores of each query with all distances, contiguous (n, F_q, T_q, distances) -> a view of those with its keys.

    Among falling distances, a query's keys are neighbours, and begin ``step`` later for the query before.
    """
    queries, distances = scores.shape[2:]
    step = (distances - keys) // max(1, queries - 1)
    strides = (*scores.stride()[:2], distances - step, 1)
    return scores.as_strided((*scores.shape[:3], keys), strides, (queries - 1) * step)


def _operands(projected: Tensor, poolings: list[encoder.Pooling], freq: Tensor, time: Tensor, heads: int) -> Operands:
    """Pools (B, F, T, 3 * dim_out) and scores the positions; see ``mast.fast.widened.position_scores``."""
    q, k, v = (pool.forward(x, heads) for pool, x in zip(poolings, projected.chunk(3, dim=-1), strict=True))
    grid = q.flatten(0, 1)
    if time.ndim == 2:
        by_time = _pairs(grid @ time.t(), k.shape[3])
    else:
        by_time = _columns_last(torch.bmm(_columns_first(grid), time.transpose(1, 2)), grid.shape[1])
    return Operands(q, k, v, grid @ freq.transpose(1, 2), by_time)


class _AttentionBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: AttentionSettings, shares: Tensor | None, x: Tensor, *parameters: Tensor) -> Tensor:
        x = x.contiguous()
        weights = AttentionWeights(*parameters).as_operands(x.dtype)
        normed = encoder.layer_norm(x, weights.norm, weights.norm_bias, settings.eps)
        projected = F.linear(normed, weights.qkv, weights.qkv_bias)
        op = _operands(projected, weights.poolings(settings), weights.freq, weights.time, settings.heads)
        out, buffer = torch.empty_like(_flat(op.q)), op.buffer()
        for heads, rows in op.tiles():
            torch.bmm(op.weights(heads, rows, buffer), _flat(op.v)[heads], out=out[heads, rows])
        merged = torch.empty_like(op.q.permute(0, 2, 3, 1, 4), memory_format=torch.contiguous_format)
        torch.add(op.q.permute(0, 2, 3, 1, 4), out.view_as(op.q).permute(0, 2, 3, 1, 4), out=merged)
        ctx.settings = settings
        ctx.save_for_backward(shares, x, projected, merged, *parameters)
        if not settings.residual:
            return F.linear(merged.flatten(3), weights.proj, weights.proj_bias.to(x.dtype))
        return encoder.add_residual_(F.linear(merged.flatten(3), weights.proj), x, weights.proj_bias, shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shares, x, projected, merged, *parameters = ctx.saved_tensors
        settings, weights = ctx.settings, AttentionWeights(*parameters).as_operands(x.dtype)
        poolings = weights.poolings(settings)
        found: dict[str, Tensor | None] = {}
        through = grad if shares is None else grad * shares
        wanted = dict(zip(AttentionWeights._fields, ctx.needs_input_grad[-len(parameters) :], strict=True))
        found["proj"], found["proj_bias"] = _weight_gradients(
            through, merged.flatten(3), wanted["proj"], wanted["proj_bias"]
        )
        grad_merged = (through @ weights.proj).view_as(merged).permute(0, 3, 1, 2, 4)

        op = _operands(projected, poolings, weights.freq, weights.time, settings.heads)
        grads, found["freq"], found["time"] = _attention_backward(op, grad_merged.contiguous(), weights)
        grad_projected = torch.empty_like(projected)
        parts = zip("qkv", poolings, projected.chunk(3, -1), grad_projected.chunk(3, -1), strict=True)
        for (name, pool, source, target), terms in zip(parts, ([*grads[0], grad_merged], *grads[1:]), strict=True):
            taps, found[f"{name}_norm"], found[f"{name}_norm_bias"] = pool.backward(
                source, settings.heads, terms, target
            )
            found[f"{name}_taps"] = taps.t().unflatten(1, (1, 3, 3))

        normed = encoder.layer_norm(x, weights.norm, weights.norm_bias, settings.eps)
        found["qkv"], found["qkv_bias"] = _weight_gradients(grad_projected, normed, wanted["qkv"], wanted["qkv_bias"])
        grad_x = grad_projected @ weights.qkv
        past = grad.contiguous() if settings.residual else None
        grad_x, found["norm"], found["norm_bias"] = encoder.layer_norm_backward_(
            grad_x, x, weights.norm, settings.eps, past
        )
        return None, None, grad_x, *(found[name] for name in AttentionWeights._fields)


def _attention_backward(
    op: Operands, grad_out: Tensor, weights: AttentionWeights
) -> tuple[tuple[list[Tensor], list[Tensor], list[Tensor]], Tensor, Tensor]:
    """From the gradient of the attention's result (B, heads, F_q, T_q, dim) to those of q, k and v, each as terms to be
    summed, and of the relative positions."""
    grad_q, grad_k, grad_v = torch.empty_like(op.q), torch.empty_like(op.k), torch.empty_like(op.v)
    grid, time = op.q.flatten(0, 1), weights.time
    by_freq = torch.empty_like(op.by_freq)
    if time.ndim == 2:  # distances at which a query has no key get no gradient
        by_distance = grid.new_zeros(*grid.shape[:3], len(time))
        by_time = _pairs(by_distance, op.k.shape[3])
    else:
        by_time = torch.empty_like(op.by_time)
    buffer, second = op.buffer(), op.buffer()
    for heads, rows in op.tiles():
        q, k, v, grad = _flat(op.q)[heads, rows], _flat(op.k)[heads], _flat(op.v)[heads], _flat(grad_out)[heads, rows]
        shares = op.weights(heads, rows, buffer)
        so_far = 1 if rows.start else 0
        _flat(grad_v)[heads].baddbmm_(shares.transpose(1, 2), grad, beta=so_far)
        grad_scores = torch.bmm(grad, v.transpose(1, 2), out=_room(second, q, k))
        encoder.softmax_backward_(shares, grad_scores, by_freq[heads], by_time[heads], rows.start, op.factor)
        torch.bmm(grad_scores, k, out=_flat(grad_q)[heads, rows])
        _flat(grad_k)[heads].baddbmm_(grad_scores.transpose(1, 2), q, beta=so_far)

    of_q = [grad_q, (by_freq @ weights.freq).view_as(op.q)]
    grad_freq = (by_freq.transpose(2, 3) @ grid).sum(dim=0)
    if time.ndim == 2:
        flat = by_distance.flatten(0, 2)
        grad_q.flatten(0, 3).addmm_(flat, time)
        grad_time = flat.t() @ grid.flatten(0, 2)
    else:
        columns = _columns_first(by_time)
        of_q.append(_columns_last(torch.bmm(columns, time), grid.shape[1]).unflatten(0, op.q.shape[:2]))
        grad_time = torch.bmm(columns.transpose(1, 2), _columns_first(grid))
    return (of_q, [grad_k], [grad_v]), grad_freq.float(), grad_time.float()


class _MlpBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, shares: Tensor | None, x: Tensor, *parameters: Tensor) -> Tensor:
        x = x.contiguous()
        norm, norm_bias, fc1, fc1_bias, fc2, fc2_bias = parameters
        hidden = F.linear(encoder.layer_norm(x, norm, norm_bias, eps), fc1.to(x.dtype))
        ctx.eps = eps
        ctx.save_for_backward(shares, x, hidden, norm, norm_bias, fc1, fc1_bias, fc2)
        return encoder.add_residual_(F.linear(encoder.gelu(hidden, fc1_bias), fc2.to(x.dtype)), x, fc2_bias, shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shares, x, hidden, norm, norm_bias, fc1, fc1_bias, fc2 = ctx.saved_tensors
        normed = encoder.layer_norm(x, norm, norm_bias, ctx.eps)
        through = (grad if shares is None else grad * shares).flatten(0, -2)
        grad_hidden = through @ fc2.to(x.dtype)
        activated, grad_fc1_bias = encoder.gelu_backward_(grad_hidden, hidden.flatten(0, -2), fc1_bias)
        grad_fc2, grad_fc2_bias = _weight_gradients(through, activated, *ctx.needs_input_grad[-2:])
        grad_fc1 = (grad_hidden.t() @ normed.flatten(0, -2)).float() if ctx.needs_input_grad[-4] else None
        grad_x = (grad_hidden @ fc1.to(x.dtype)).view_as(x)
        grad_x, *affine = encoder.layer_norm_backward_(grad_x, x, norm, ctx.eps, grad.contiguous())
        return None, None, grad_x, *affine, grad_fc1, grad_fc1_bias, grad_fc2, grad_fc2_bias


def _weight_gradients(grad: Tensor, x: Tensor, weight: bool, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight and bias in float32, each if it is wanted."""
    flat = grad.flatten(0, -2)
    of_weight = (flat.t() @ x.flatten(0, -2)).float() if weight else None
    return of_weight, flat.sum(dim=0).float() if bias else None  # summed in float32, whatever its type


def attention_branch(
    x: Tensor, settings: AttentionSettings, weights: AttentionWeights, shares: Tensor | None = None
) -> Tensor:
    """Norm, pooling attention and projection: (B, F, T, dim) -> (B, F', T', dim_out).

    Args:
        shares: factors of each sample's branch (B, 1, 1, 1), as stochastic depth draws them, where it is added to x.
    """
    return _AttentionBranch.apply(settings, shares, x, *weights)  # type: ignore[no-any-return]


def mlp_branch(x: Tensor, eps: float, shares: Tensor | None, *parameters: Tensor) -> Tensor:
    """``x`` plus its norm and MLP: (B, ..., dim) -> (B, ..., dim).

    Args:
        shares: factors of each sample's branch (B, 1, ...), as stochastic depth draws them.
        parameters: weight and bias of the norm, the first and the second layer.
    """
    return _MlpBranch.apply(eps, shares, x, *parameters)  # type: ignore[no-any-return]
