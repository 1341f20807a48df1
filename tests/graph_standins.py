"""CUDA graphs without a GPU: what has their contract, and shows what breaks it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mast.fast.cuda.graphs import Passes, Recording


class Taped(Recording):
    """Operators of one run, on the tensors and numbers of that run, again and again: Python's part happens once.

    So a learning rate that is a number, a tensor that has moved, or a branch that would now go the other way shows.
    """

    device_type = "cpu"

    def __init__(self, function: Callable[[], Sequence[Tensor]]) -> None:
        function()  # the warm-up
        with _Tape() as tape:
            self.outputs = tuple(function())
        self._calls = tape.calls

    @torch.no_grad()
    def replay(self) -> None:
        for operator, args, kwargs, kept in self._calls:
            made = operator(*args, **kwargs)
            for old, new in zip(tree_leaves(kept), tree_leaves(made), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "aten::_local_scalar_dense":
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made


class Recorded(Passes):
    """The contract of a pair of graphs, kept by running the function again."""

    device_type = "cpu"
    wrong = 0.0

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]) -> None:
        self.function, self.parameters, self.input = function, parameters, x.detach().clone()
        out = function(self.input)  # a capture draws numbers, and moves running statistics
        self.output, self.grad = out.detach().clone(), torch.empty_like(out)
        self.gradients = tuple(torch.empty_like(parameter) for parameter in parameters)

    def forward(self) -> None:
        with torch.enable_grad():
            self.made = self.function(self.input)
        self.output.copy_(self.made.detach() + self.wrong)
        for gradient in self.gradients:
            gradient.fill_(float("nan"))

    def backward(self) -> None:
        found = torch.autograd.grad(self.made, self.parameters, self.grad)
        for gradient, value in zip(self.gradients, found, strict=True):
            gradient.copy_(value)
        self.output.fill_(float("nan"))
