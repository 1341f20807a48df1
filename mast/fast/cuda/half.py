"""Weights in half precision: all of a block cast by one kernel, in place of one each, and so are their gradients.

Under autocast each linear layer casts its weight and its bias, some 200 times in a forward pass of MAST-B, and as many
gradients back. What is cast here is what autocast would cast, at every call, from the weights as they are then: there
is no copy that could be out of date. Parameters, their gradients and the state dict stay float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mast.fast.observers import observed


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        halves = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(halves, weights)
        frozen = [half for half, weight in zip(halves, weights, strict=True) if not weight.requires_grad]
        ctx.mark_non_differentiable(*frozen)
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return tuple(halves)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [grad for grad in grads if grad is not None]
        if torch.is_grad_enabled():  # differentiated again
            whole = [grad.to(ctx.dtype) for grad in given]
        else:
            whole = [torch.empty_like(grad, dtype=ctx.dtype) for grad in given]
            if given:
                torch._foreach_copy_(whole, given)
        found = iter(whole)
        return None, *(None if grad is None else next(found) for grad in grads)


def weights_in_half(block: nn.Module, x: Tensor) -> AbstractContextManager[None]:
    """Within it the linear layers of ``block`` have their weights in half precision, if ``x`` is on a GPU in autocast.

    Nothing happens where operators are traced, transformed or counted.
    """
    if not x.is_cuda or not torch.is_autocast_enabled("cuda") or observed():
        return nullcontext()
    return cast_within(block, torch.get_autocast_dtype("cuda"))


@contextmanager
def cast_within(block: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Puts weights and biases of the linear layers of ``block``, cast to ``dtype``, in the place of the parameters.

    Left alone are layers of a class of their own, and weights of other kinds, such as sharded ones.
    """
    slots = [
        (layer._parameters, name, weight)
        for layer in block.modules()
        if type(layer) is nn.Linear
        for name, weight in layer._parameters.items()
        if type(weight) is nn.Parameter and weight.dtype == torch.float32
    ]
    if not slots:
        yield
        return
    halves = _Cast.apply(dtype, *(weight for _, _, weight in slots))
    try:
        for (of, name, _), half in zip(slots, halves, strict=True):
            of[name] = half
        yield
    finally:
        for of, name, weight in slots:
            of[name] = weight
