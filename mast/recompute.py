"""Training steps that compute again what others keep.

Activations, not parameters, decide the memory of a training step. ``gelu_then`` and ``RecomputedAttention`` keep their
inputs only; together they halve the activations of MAST for a few percent more products.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Scores worked on at a time: 2 MiB in float32, so that they are still in a core's cache when they are used next.
_TILE_SCORES = 2**19


def gelu_then(linear: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``linear(gelu(x))``, keeping x only: the activated values, as large, are computed again in the backward pass."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return linear(F.gelu(x))
    kept = x.detach()
    activated = F.gelu(x)
    address, count = activated.data_ptr(), activated.numel()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if tensor.numel() == count and tensor.data_ptr() == address else tensor

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else F.gelu(kept).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return linear(activated)


class Widened(NamedTuple):
    """What attention works on, heads and batch in one.

    Attributes:
        q: (B * heads, N_q, width).
        k: (B * heads, N_k, width), of which the first ``dim`` columns depend on the input, the others are constant.
        v: (B * heads, N_k, dim).
    """

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def scale(self) -> float:
        """1 / sqrt(dim): of the heads before they were widened."""
        return self.v.shape[-1] ** -0.5


def attend(w: Widened) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v with differentiable steps, which keep the weights: (B * heads, N_q, dim)."""
    return _weights(w.q, w.k, w.scale) @ w.v


def heads_last(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(B * heads, F * T, dim) -> ``shape`` (B, F, T, heads, dim), as a view."""
    return x.unflatten(0, (shape[0], shape[3])).unflatten(2, (shape[1], shape[2])).permute(0, 2, 3, 1, 4)


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    # beta is 0; alpha scales within the product, without a pass over the scores.
    return torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale).softmax(dim=-1)


class RecomputedAttention(torch.autograd.Function):
    """Attention plus its pooled queries, a few heads at a time, keeping the inputs of the pooling only.

    Call as ``RecomputedAttention.apply(prepare, count, *inputs, *parameters)``: ``prepare`` makes a Widened and the
    queries (B, F, T, heads, dim) of ``count`` inputs with a module's ``parameters``, differentiably. The fused kernels
    would keep less than ``attend``, too, but on a CPU their backward pass takes up to twice as long: it needs v and the
    gradient of the output padded to the widened heads, and computes gradients of the constant part of k.
    """

    @staticmethod
    def forward(ctx: Any, prepare: Callable[..., tuple[Widened, Tensor]], count: int, *tensors: Tensor) -> Tensor:
        """(B, F, T, heads, dim)."""
        ctx.prepare = prepare
        ctx.parameters = tensors[count:]
        ctx.save_for_backward(*tensors[:count])
        w, queries = prepare(*tensors[:count])
        out = w.v.new_empty(*w.q.shape[:2], w.v.shape[2])
        for heads, rows in _tiles(w):
            torch.bmm(_weights(w.q[heads, rows], w.k[heads], w.scale), w.v[heads], out=out[heads, rows])
        return queries + heads_last(out, queries.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the inputs and parameters."""
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            graph, queries = ctx.prepare(*inputs)
        w = Widened(*(tensor.detach() for tensor in graph))
        dim = w.v.shape[2]
        grad_out = grad.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
        grads = Widened(torch.empty_like(w.q), torch.zeros_like(w.k), torch.zeros_like(w.v))
        for heads, rows in _tiles(w):
            q, k, g = w.q[heads, rows], w.k[heads], grad_out[heads, rows]
            weights = _weights(q, k, w.scale)
            grads.v[heads].baddbmm_(weights.transpose(1, 2), g)
            grad_scores = torch.bmm(g, w.v[heads].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_scores, weights, -1, weights.dtype)
            torch.baddbmm(q.new_zeros(()), grad_scores, k, beta=0, alpha=w.scale, out=grads.q[heads, rows])
            grads.k[heads, :, :dim].baddbmm_(grad_scores.transpose(1, 2), q[..., :dim], alpha=w.scale)
        return None, None, *torch.autograd.grad((*graph, queries), [*inputs, *ctx.parameters], (*grads, grad))


def _tiles(w: Widened) -> Iterator[tuple[slice, slice]]:
    """Ranges of heads and queries with about ``_TILE_SCORES`` scores: several small heads, or a part of a large one."""
    items, queries, keys = len(w.q), w.q.shape[1], w.k.shape[1]
    some_heads = max(1, _TILE_SCORES // (queries * keys))
    some_rows = queries if some_heads > 1 else max(1, _TILE_SCORES // keys)
    for head in range(0, items, some_heads):
        for row in range(0, queries, some_rows):
            yield slice(head, head + some_heads), slice(row, row + some_rows)
