"""Training steps that compute again what others keep.

Activations, not parameters, decide the memory of a training step. ``recomputed`` and ``PooledAttention`` keep
their inputs only; together they halve the activations of MAST for a few percent more products.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mast.relative import heads_last, position_scores

# Scores worked on at a time: 2 MiB in float32, so that they are still in a core's cache when they are used next.
_TILE_SCORES = 2**19


@contextmanager
def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, result: Tensor) -> Iterator[None]:
    """Within it, operations that would keep ``result`` for their backward pass keep the way to it from ``x``.

    Worth it where ``x`` is kept anyway and ``function`` is cheap: ``result = function(x)``, computed once more.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    # Hooks do not nest: only the innermost are called. An outer checkpoint has to see what these ones pass on, and the
    # way to the result, or it would not be rid of them.
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
    keep, give_back = outer if outer is not None else (_itself, _itself)
    kept, address, count = keep(x.detach()), result.data_ptr(), result.numel()
    users, waiting = 0, 0
    again: Tensor | None = None

    def pack(tensor: Tensor) -> Any:
        nonlocal users
        if tensor.data_ptr() != address or tensor.numel() != count or not tensor.is_contiguous():
            return keep(tensor)
        users += 1
        return tensor.shape

    def unpack(packed: Any) -> Tensor:
        nonlocal again, waiting
        if not isinstance(packed, torch.Size):
            return give_back(packed)
        if again is None:
            again, waiting = function(give_back(kept)), users
        value, waiting = again, waiting - 1
        if waiting == 0:  # the last user has it
            again = None
        return value.view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _itself(packed: Any) -> Any:
    return packed


class Operands(NamedTuple):
    """What attention works on, batch and heads in one: n = B * heads.

    Attributes:
        q: (n, N_q, dim).
        k, v: (n, F_k * T_k, dim).
        freq: (n, N_q, F_k) score of each query with each key frequency, see ``mast.relative.position_scores``.
        time: (n, N_q, T_k) score of each query with each key time.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    freq: Tensor
    time: Tensor

    @property
    def scale(self) -> float:
        """1 / sqrt(dim)."""
        return self.q.shape[-1] ** -0.5

    def weights(self, heads: slice, rows: slice) -> Tensor:
        """Attention weights of some heads and queries. The scores are summed within the product, in its output."""
        scores = (self.freq[heads, rows, :, None] + self.time[heads, rows, None, :]).flatten(2)
        keys = self.k[heads].transpose(1, 2)
        return scores.baddbmm_(self.q[heads, rows], keys, beta=self.scale, alpha=self.scale).softmax(dim=-1)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Ranges of heads and queries with about ``_TILE_SCORES`` scores: small heads together, large ones in parts."""
        count, queries, keys = len(self.q), self.q.shape[1], self.k.shape[1]
        some_heads = max(1, _TILE_SCORES // (queries * keys))
        some_rows = queries if some_heads > 1 else max(1, _TILE_SCORES // keys)
        for head in range(0, count, some_heads):
            for row in range(0, queries, some_rows):
                yield slice(head, head + some_heads), slice(row, row + some_rows)


def operands(q: Tensor, k: Tensor, v: Tensor, r_freq: Tensor, r_time: Tensor) -> Operands:
    """From the arguments of ``mast.relative.attention``, differentiably."""
    tensors = (q, k, v, *position_scores(q, r_freq, r_time))
    return Operands(*(tensor.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1) for tensor in tensors))


class PooledAttention(torch.autograd.Function):
    """Attention plus its pooled queries, tile by tile, keeping the inputs of the pooling only.

    Call as ``PooledAttention.apply(pool, count, *inputs, *parameters)``: ``pool`` makes the five arguments of
    ``mast.relative.attention`` of ``count`` inputs with a module's ``parameters``, differentiably. The result is that
    of ``q + attention(q, ...)``.

    A fused kernel would keep little, too, but on a CPU its backward pass takes up to twice as long: it needs v and the
    gradient of the output padded to the widened heads, and computes gradients of the constant part of k. Without
    gradients the tiles are still a third faster.
    """

    @staticmethod
    def forward(ctx: Any, pool: Callable[..., tuple[Tensor, ...]], count: int, *tensors: Tensor) -> Tensor:
        """(B, F, T, heads, dim)."""
        ctx.pool = pool
        ctx.parameters = tensors[count:]
        ctx.save_for_backward(*tensors[:count])
        pooled = pool(*tensors[:count])
        queries = pooled[0]
        op = operands(*pooled)
        out = torch.empty_like(op.q)
        for heads, rows in op.tiles():
            torch.bmm(op.weights(heads, rows), op.v[heads], out=out[heads, rows])
        return queries + heads_last(out, queries.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the inputs and parameters."""
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            pooled = ctx.pool(*inputs)
            graph = operands(*pooled)
        op = Operands(*(tensor.detach() for tensor in graph))
        grads = Operands(*(torch.zeros_like(tensor) for tensor in op))
        grad_out = grad.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
        scale, grid = op.scale, (op.freq.shape[2], op.time.shape[2])
        for heads, rows in op.tiles():
            q, g = op.q[heads, rows], grad_out[heads, rows]
            weights = op.weights(heads, rows)
            grads.v[heads].baddbmm_(weights.transpose(1, 2), g)
            grad_scores = torch.bmm(g, op.v[heads].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_scores, weights, -1, weights.dtype)
            grads.q[heads, rows].baddbmm_(grad_scores, op.k[heads], alpha=scale)
            grads.k[heads].baddbmm_(grad_scores.transpose(1, 2), q, alpha=scale)
            by_position = grad_scores.unflatten(2, grid)
            torch.sum(by_position, dim=3, out=grads.freq[heads, rows])
            torch.sum(by_position, dim=2, out=grads.time[heads, rows])
        grads.freq.mul_(scale)
        grads.time.mul_(scale)
        trained = [parameter for parameter in ctx.parameters if parameter.requires_grad]
        found = iter(torch.autograd.grad((*graph, pooled[0]), [*inputs, *trained], (*grads, grad)))
        wanted = [True] * len(inputs) + [parameter.requires_grad for parameter in ctx.parameters]
        return None, None, *(next(found) if want else None for want in wanted)
