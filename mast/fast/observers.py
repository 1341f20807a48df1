"""Who else follows a computation: what only plain operators can serve."""

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, jvp ...) or forward-mode differentiation is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def observed() -> bool:
    """Whether operators are traced, transformed or counted, or hooks are on all modules.

    Work that is no operator is invisible then: a graph would lack it, fake tensors have no memory that it could read.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or nn_module._has_any_global_hook()
    )
