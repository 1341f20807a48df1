"""Training steps by CUDA graphs: what the engine computes, asked for by a few launches (``mast.fast.cuda.graphs``)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from avssl.data.batch import Batch
from avssl.training.finite import FiniteCheck
from mast.fast.cuda.graphs import Recording, Replayed, graphs_of, places_of, plainly, weights_cast_anew


class GraphedStep:
    """The parts of an optimizer step that are one CUDA graph each, wherever they fit.

    - What the task draws: augmentation and the log-mel, by modality.
    - From there to the moved weights, where the task says what a step needs of a batch (``Task.prepare``).
    - Else what comes behind the gradients: their norm, clipping, the finite check and AdamW. That needs most gradients
      in the same place at every step, as encoders by graphs have them (``graph_training``).

    Seeds, copies to the device, the schedule and the average of weights stay outside. What a graph does not serve (the
    first step, which makes AdamW's moments; batches of other shapes; several batches a step) is computed as before.

    Args:
        fabric: Launched Fabric, of one process.
        task: The task itself; its drawing methods are replaced by graphs.
        optimizer: Fused AdamW itself.
        finite: Reads its answers a step later.
        clip: Clips the gradients and returns their norm.
        frontend: What is compiled within the graphs of what the task draws; None compiles nothing.
        record: What makes a graph.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Any,
        optimizer: Optimizer,
        finite: FiniteCheck,
        clip: Callable[[], Tensor],
        frontend: nn.Module | None = None,
        record: type[Recording] = Recording,
    ) -> None:
        self._fabric, self._task, self._optimizer, self._finite, self._clip = fabric, task, optimizer, finite, clip
        self._parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self._modules, self._places = list(task.modules()), places_of(task)
        self._encoders = graphs_of(task)
        self._names: tuple[str, ...] = ()  # of a step's inputs
        self._told: tuple[list[str], list[str]] = ([], [])  # names of its losses and of its report
        self._losses: list[str] = []  # names, where there are gradients already
        self._copied: list[nn.Parameter] = []  # whose gradients are handed in, as they have no place of their own
        self._in_place: list[Tensor] = []
        self._whole = Replayed(self._compute, "training step", state=self._state, changes=True, record=record)
        self._last = Replayed(self._take, "optimizer's step", state=self._state_of_last, changes=True, record=record)
        self._drawn = [_graph_drawing(task, name, frontend, record) for name in task.drawing]

    def in_use(self) -> list[str]:
        """What is computed by graphs by now."""
        found = [part.name for part in (self._whole, self._last, *self._drawn) if part.recording is not None]
        return found + [type(encoder.module).__name__ for encoder in self._encoders if encoder.passes is not None]

    def whole(self, step: int, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor] | None:
        """Takes the step of ``batch``: its losses, its report and the norm of its gradients.

        None: nothing was done, and the engine has to.

        Raises:
            NonFiniteError: the step before was not finite.
        """
        with self._fabric.autocast():
            given = self._task.prepare(batch)
        if given is None:
            return None
        self._names = tuple(given)
        kind: tuple[Any, ...] = (self._names, self._settings(), tuple(module.training for module in self._modules))
        kind += (tuple(parameter.requires_grad for parameter in self._parameters),)
        self._finite.settle()
        with nullcontext() if self._has_moments() else plainly():
            *values, norm, flags = self._whole(self._rates(), *given.values(), kind=kind)
        names, reported = self._told
        losses = dict(zip(names, values[: len(names)], strict=True))
        report = dict(zip(reported, values[len(names) :], strict=True))
        self._finite.watch(step, losses, norm, flags)
        return losses, report, norm

    def optimize(self, step: int, losses: dict[str, Tensor]) -> Tensor | None:
        """Takes the step of the gradients that there are; their norm before clipping.

        None: nothing was done, and the engine has to.

        Raises:
            NonFiniteError: the step before was not finite.
        """
        kept = {key: gradient for encoder in self._encoders for key, gradient in encoder.kept.items()}
        self._copied, self._in_place = [], []
        for parameter in self._parameters:
            if parameter.grad is not None:
                mine = kept.get(id(parameter))
                if mine is not None and mine.data_ptr() == parameter.grad.data_ptr():
                    self._in_place.append(parameter.grad)
                else:
                    self._copied.append(parameter)
        handed_in = [parameter.grad for parameter in self._copied]
        if not self._has_moments() or _values(handed_in) > _values(self._in_place):
            return None
        self._losses = list(losses)
        kind = (tuple(losses), self._settings(), *(parameter.grad is None for parameter in self._parameters))
        self._finite.settle()
        norm, flags = self._last(self._rates(), *losses.values(), *handed_in, kind=kind)
        self._finite.watch(step, losses, norm, flags)
        return norm

    def _compute(self, rates: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Losses, report, norm and flags of a step, which it takes."""
        precision = self._fabric.strategy.precision
        with torch.enable_grad():
            with self._fabric.autocast(), weights_cast_anew(rates):
                terms, details = self._task.compute(dict(zip(self._names, inputs, strict=True)))
            terms = precision.convert_output(terms)
            self._fabric.backward(torch.stack(list(terms.values())).sum())
        losses, report = ({name: value.detach().float() for name, value in of.items()} for of in (terms, details))
        self._told = list(losses), list(report)
        norm, flags = self._clip_and_move(rates, losses)
        self._optimizer.zero_grad(set_to_none=True)
        return [*losses.values(), *report.values(), norm, flags]

    def _take(self, rates: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Norm and flags of the step that it takes, by its losses and the gradients that have no place of their own."""
        losses, gradients = inputs[: len(self._losses)], inputs[len(self._losses) :]
        for parameter, gradient in zip(self._copied, gradients, strict=True):
            parameter.grad = gradient
        return list(self._clip_and_move(rates, dict(zip(self._losses, losses, strict=True))))

    def _clip_and_move(self, rates: Tensor, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """AdamW leaves the step out by itself where it is not finite."""
        norm = self._clip()
        flags = self._finite.flags(losses, norm)
        groups = self._optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        self._optimizer.found_inf = flags[0]  # type: ignore[attr-defined]
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"], group["capturable"] = rate, True
            self._optimizer.step()
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable
        return norm, flags

    def _rates(self) -> Tensor:
        """(groups,) learning rates, on the device: what the schedule changes must not be a number within a graph."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        on_gpu = self._fabric.device.type == "cuda"
        return torch.tensor(rates, pin_memory=on_gpu).to(self._fabric.device, non_blocking=True)

    def _settings(self) -> tuple[Any, ...]:
        """What of the optimizer is a number within a graph."""
        names = ("weight_decay", "betas", "eps", "amsgrad", "maximize")
        return tuple(tuple(group[name] for name in names) for group in self._optimizer.param_groups)

    def _has_moments(self) -> bool:
        state = self._optimizer.state
        return all(state.get(parameter) for parameter in self._parameters if parameter.requires_grad)

    def _state(self) -> list[Tensor]:
        state = self._optimizer.state
        return [*self._places(), *(each for p in self._parameters for each in state.get(p, {}).values())]

    def _state_of_last(self) -> list[Tensor]:
        return [*self._state(), *self._in_place]


def _graph_drawing(task: Any, name: str, frontend: nn.Module | None, record: type[Recording]) -> Replayed:
    """Replaces a method of ``task`` by its graph, within which ``frontend`` is compiled."""
    plain, buffers = getattr(task, name), places_of(task, parameters=False)
    compiled = None if frontend is None else torch.compile(frontend._call_impl, dynamic=False)

    def captured(*inputs: Tensor | None) -> list[Tensor]:
        if frontend is not None:
            frontend._compiled_call_impl = compiled
        try:
            return [plain(*inputs)]
        finally:
            if frontend is not None:
                frontend._compiled_call_impl = None

    replayed = Replayed(lambda *inputs: [plain(*inputs)], name, state=buffers, record=record, captured=captured)
    setattr(task, name, lambda *inputs: replayed(*inputs)[0])
    return replayed


def _values(tensors: Sequence[Tensor | None]) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor is not None)
