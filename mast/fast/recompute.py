"""Training steps that compute again what others keep: activations, not parameters, decide their memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mast.fast.observers import transformed


@contextmanager
def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, result: Tensor) -> Iterator[None]:
    """Within it, operations that would keep ``result`` for their backward pass keep the way to it from ``x``.

    Worth it where ``x`` is kept anyway and ``function`` is cheap: ``result = function(x)``, computed once more.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
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
