"""Training passes as CUDA graphs: one launch in place of thousands, where the processor is slower than the GPU.

A graph replays its kernels at fixed addresses, so it serves what it was captured for alone: one input shape, the same
parameters, one forward pass at a time. :class:`Graphed` captures an encoder's forward and backward pass at its first
training call, compares them with the plain pass there, and leaves every call that does not fit to the plain code.
:func:`captured` is for a whole training step of your own.
"""

import copy
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mast.base import SpectrogramModel
from mast.fast.observers import observed

logger = logging.getLogger(__name__)

WARM_UP = 3
# Of the same kernels on the same numbers: what atomic additions in another order may change, in half precision.
TOLERANCE = 0.02

Function = Callable[[Tensor], Tensor]


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A whole training step as one CUDA graph.

    Args:
        step: forward, backward and optimizer on tensors that stay where they are; returns the loss. It must not wait
            for the device nor set a seed. AdamW has to be made with ``capturable=True``, and gradients have to be
            cleared within it (``set_to_none=True``). It runs four times here, so weights move by three steps.

    Returns:
        A function that runs the step again, on what its inputs hold then, and returns the loss, always in one tensor.
    """
    _on_the_side(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def _on_the_side(call: Callable[[], Any]) -> None:
    """Warm up: what a capture must not do, such as compiling and making workspaces, happens here."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)


def weights_cast_anew(x: Tensor) -> torch.autocast:
    """The caller's autocast, without its cache of the weights.

    The casts belong into a graph; and what is cached keeps the nodes alive that take the parameters' gradients, each
    of which waits for the stream that it was made on: a capture may not wait for another stream.
    """
    kind = x.device.type
    mixed, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype, enabled=mixed, cache_enabled=False)


class Passes:
    """The forward and the backward pass of ``function`` as two CUDA graphs that share their memory.

    Args:
        function: of one tensor, under the autocast of the caller.
        x: an input; its shape is the one that is served.
        parameters: whose gradients are computed; nothing else gets one.
    """

    device_type = "cuda"

    def __init__(self, function: Function, x: Tensor, parameters: Sequence[Tensor]) -> None:
        self.input = x.detach().clone()

        def forward() -> Tensor:
            with weights_cast_anew(x):
                return function(self.input)

        def backward(out: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
            with torch.autocast("cuda", enabled=False):
                return torch.autograd.grad(out, parameters, grad, allow_unused=True)

        _on_the_side(lambda: backward(out := forward(), torch.ones_like(out)))
        graphs = self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads, which load and copy batches, go on meanwhile: theirs is not this graph's.
        with torch.cuda.graph(graphs[0], capture_error_mode="thread_local"):
            out = forward()
        self.grad = torch.empty_like(out)
        with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode="thread_local"):
            self.gradients = backward(out, self.grad)
        self.output = out.detach()

    def forward(self) -> None:
        """From ``input`` to ``output``."""
        self._forward.replay()

    def backward(self) -> None:
        """From ``grad``, that of the output, to ``gradients``, those of the parameters; once after each forward."""
        self._backward.replay()


class _Turn:
    """A forward pass whose values are still in the graph's memory, for its backward pass."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphed: "Graphed", x: Tensor, *parameters: Tensor) -> Tensor:
        passes = cast(Passes, graphed.passes)
        graphed.take_over_gradients(parameters)
        passes.input.copy_(x)
        passes.forward()
        ctx.passes, ctx.turn = passes, _Turn()
        graphed.turn = weakref.ref(ctx.turn)
        return passes.output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.turn is None:
            raise RuntimeError("a second backward pass of one forward pass: a CUDA graph keeps nothing for it")
        ctx.turn, passes = None, ctx.passes
        passes.grad.copy_(grad)
        passes.backward()
        return None, None, *(None if each is None else each.detach() for each in passes.gradients)


class Graphed:
    """What ``module.method`` computes, in training by CUDA graphs where they fit.

    Everything else is left to the plain code, and said once for each reason: evaluation, inputs of another shape than
    the first, inputs that need a gradient, a second forward pass before the backward pass of the first, checkpoints and
    chunks, and who counts or traces operators. So are all calls where the graphs differ from the plain pass on the
    first input, or cannot be captured. Random numbers are those of the plain pass.

    Args:
        module: its parameters are trained; they stay where they are, or the graphs are left.
        method: of one tensor, returning one.
        capture: what makes the two passes.
    """

    def __init__(self, module: nn.Module, method: str = "forward", capture: type[Passes] = Passes) -> None:
        self.module, self.method, self.plain = module, method, cast(Function, getattr(module, method))
        self.passes: Passes | None = None
        self.turn: Callable[[], _Turn | None] = lambda: None
        self._capture_by, self._key, self._refused, self._said = capture, (), "", set[str]()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphed":
        """For the copied module, without what was captured: that is the original's memory."""
        return Graphed(copy.deepcopy(self.module, memo), self.method, self._capture_by)

    def __call__(self, x: Tensor) -> Tensor:
        """``module.method(x)``."""
        if torch.compiler.is_compiling():
            return self.plain(x)
        if not self.module.training or not torch.is_grad_enabled():
            return self._plainly(x, "evaluation")
        if observed():
            return self._plainly(x, "its operators are counted, traced or hooked")
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        key = self._key_of(x, parameters)
        reason = self._refused or self._unfit(x, parameters, key)
        if not reason and self.passes is None:
            reason = self._refused = self._capture(x, parameters, key)
            if reason:
                logger.warning("%s gets no CUDA graphs: %s", type(self.module).__name__, reason)
        if reason:
            return self._plainly(x, reason)
        return cast(Tensor, _Replay.apply(self, x, *parameters))

    def _plainly(self, x: Tensor, reason: str) -> Tensor:
        if reason not in self._said:
            self._said.add(reason)
            logger.info("%s operator by operator: %s", type(self.module).__name__, reason)
        return self.plain(x)

    def _key_of(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Any, ...]:
        kind = x.device.type
        precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        return x.shape, x.dtype, x.device, precision, tuple(parameter.data_ptr() for parameter in parameters)

    def _unfit(self, x: Tensor, parameters: Sequence[Tensor], key: tuple[Any, ...]) -> str:
        """Why the graphs do not serve this call; "" where they do."""
        if x.device.type != self._capture_by.device_type or not parameters:
            return "there is nothing to capture"
        if x.requires_grad:
            return "its input needs a gradient"
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            return "it is computed in chunks, or within a checkpoint"
        if self.turn() is not None:
            return "a second forward pass comes before the backward pass of the first"
        if self.passes is None or key == self._key:
            return ""
        if key[:-1] == self._key[:-1]:
            return "its parameters have moved, or others are trained"
        return f"its graphs are for {_shown(self._key)} alone"

    def _capture(self, x: Tensor, parameters: Sequence[Tensor], key: tuple[Any, ...]) -> str:
        """Captures both passes and compares them with the plain ones; why they are refused, or ""."""
        devices = [x.device] if x.is_cuda else []
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        try:
            with torch.random.fork_rng(devices):
                with weights_cast_anew(x):
                    wanted = self.plain(x)
                weight = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype, device=x.device).view_as(wanted)
                gradients = torch.autograd.grad(wanted, parameters, weight, allow_unused=True)
                wanted = wanted.detach()
            with torch.random.fork_rng(devices):
                passes = self._capture_by(self.plain, x, parameters)
            with torch.random.fork_rng(devices):
                passes.input.copy_(x)
                passes.forward()
                out = passes.output.clone()
                passes.grad.copy_(weight)
                passes.backward()
        except RuntimeError as error:  # also out of memory; what the plain code raises, it raises again
            return f"no graph could be captured ({str(error).splitlines()[0]})"
        finally:  # running statistics saw this batch several times
            for buffer, value in buffers:
                buffer.copy_(value)
        for what, found, expected in (("values", [out], [wanted]), ("gradients", passes.gradients, gradients)):
            off, size = _distance(found, expected)
            if not off <= TOLERANCE * size:
                return f"the {what} of its graphs differ from the plain ones by {off:.1e} of {size:.1e}"
        self.passes, self._key = passes, key
        logger.info("%s: training passes are CUDA graphs, for %s", type(self.module).__name__, _shown(key))
        return ""

    def take_over_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Copies gradients that lie in the graphs' memory, which the next passes write over: several batches a step."""
        passes = cast(Passes, self.passes)
        for parameter, mine in zip(parameters, passes.gradients, strict=True):
            grad = parameter.grad
            if grad is not None and mine is not None and grad.data_ptr() == mine.data_ptr():
                parameter.grad = grad.clone()


def graph_training(encoder: nn.Module) -> None:
    """Lets ``encoder`` train by CUDA graphs, in place; see :class:`Graphed`. Its state dict stays as it is."""
    method = "forward"
    if isinstance(encoder, SpectrogramModel):  # whose head and pooling are the caller's
        own = type(encoder).forward_features is not SpectrogramModel.forward_features
        method = "forward_features" if own else "forward_grid"
    setattr(encoder, method, Graphed(encoder, method))


def _shown(key: tuple[Any, ...]) -> str:
    return f"inputs of {' x '.join(map(str, key[0]))}"


def _distance(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> tuple[float, float]:
    """Norm of the difference, and of ``wanted``; infinite where one has a gradient that the other has not."""
    error = size = 0.0
    for a, b in zip(found, wanted, strict=True):
        if (a is None) != (b is None):
            return float("inf"), size
        if a is not None and b is not None:
            error += float((a.float() - b.float()).square().sum())
            size += float(b.float().square().sum())
    return error**0.5, size**0.5
