"""Training by CUDA graphs: one launch in place of thousands, where the processor is slower than the GPU.

A graph replays its kernels at fixed addresses, so it serves what it was captured for alone: one input shape, the same
parameters, one forward pass at a time. :class:`Graphed` captures an encoder's forward and backward pass at its first
training call, :class:`Replayed` any function that needs no gradient, such as a whole optimizer step or augmentation.
Both compare the graph with the plain code there, and leave every call that does not fit to the plain code.
:func:`captured` is for a step of your own.
"""

import copy
import gc
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
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
# Of what a step changes: AdamW's first steps make ones of all gradients, also of those that are rounding alone.
TOLERANCE_OF_CHANGES = 0.25

Function = Callable[[Tensor], Tensor]


class Recording:
    """What ``function`` does, as one CUDA graph: always with the same memory.

    Args:
        function: of nothing; runs four times here. What a capture must not do, such as compiling, it does at the first.
    """

    device_type = "cuda"

    def __init__(self, function: Callable[[], Sequence[Tensor]]) -> None:
        _on_the_side(function)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, which load and copy batches, go on meanwhile: theirs is not this graph's.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = tuple(function())

    def replay(self) -> None:
        """Runs it again, on what its inputs hold now; ``outputs`` are overwritten."""
        self._graph.replay()


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A whole training step as one CUDA graph.

    Args:
        step: forward, backward and optimizer on tensors that stay where they are; returns the loss. It must not wait
            for the device nor set a seed. AdamW has to be made with ``capturable=True``, and gradients have to be
            cleared within it (``set_to_none=True``). It runs four times here, so weights move by three steps.

    Returns:
        A function that runs the step again, on what its inputs hold then, and returns the loss, always in one tensor.
    """
    recording = Recording(lambda: [step()])

    def replay() -> Tensor:
        recording.replay()
        return recording.outputs[0]

    return replay


def _on_the_side(call: Callable[[], Any]) -> None:
    """Warm up: what a capture must not do, such as compiling and making workspaces, happens here.

    What earlier passes left in cycles goes first: nodes that take the parameters' gradients would be used again, and
    wait for the stream that they were made on, which a capture may not.
    """
    gc.collect()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    gc.collect()


_plain_within = 0


@contextmanager
def plainly() -> Iterator[None]:
    """Within, nothing is captured or replayed: it may be part of a larger graph."""
    global _plain_within
    _plain_within += 1
    try:
        yield
    finally:
        _plain_within -= 1


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
        self.kept: dict[int, Tensor] = {}  # gradients in the graphs' memory, by id of the parameter
        self.turn: Callable[[], _Turn | None] = lambda: None
        self._capture_by, self._key, self._refused, self._said = capture, (), "", set[str]()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphed":
        """For the copied module, without what was captured: that is the original's memory."""
        return Graphed(copy.deepcopy(self.module, memo), self.method, self._capture_by)

    def __call__(self, x: Tensor) -> Tensor:
        """``module.method(x)``."""
        if torch.compiler.is_compiling() or _plain_within:
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
        pairs = zip(parameters, passes.gradients, strict=True)
        self.kept = {id(parameter): gradient for parameter, gradient in pairs if gradient is not None}
        logger.info("%s: training passes are CUDA graphs, for %s", type(self.module).__name__, _shown(key))
        return ""

    def take_over_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Copies gradients that lie in the graphs' memory, which the next passes write over: several batches a step."""
        passes = cast(Passes, self.passes)
        for parameter, mine in zip(parameters, passes.gradients, strict=True):
            grad = parameter.grad
            if grad is not None and mine is not None and grad.data_ptr() == mine.data_ptr():
                parameter.grad = grad.clone()


class Replayed:
    """What ``function`` computes, by one CUDA graph where that fits.

    The first call that fits is computed plainly, captured, and replayed on the same numbers; where that gives the same,
    the next ones are replayed. Every other is left to the plain code, and said once for each reason: other shapes or
    types than the first, tensors that have moved, checkpoints, and who counts or traces operators. Random numbers are
    those of the plain code.

    Args:
        function: of tensors (or None), returning tensors without a gradient. It must not wait for the device nor set a
            seed, and keep no value but in its results and in ``state``.
        name: for the log.
        state: the tensors that it reads or changes beside its inputs; they stay where they are, or the graph is left.
        changes: whether it changes any of them. Then all are put back after the trial, which copies them twice.
        record: what makes the graph.
        captured: what is captured in place of ``function``, such as compiled code; None: ``function`` itself.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        name: str,
        *,
        state: Callable[[], Sequence[Tensor]] = tuple,
        changes: bool = False,
        record: type[Recording] = Recording,
        captured: Callable[..., Sequence[Tensor]] | None = None,
    ) -> None:
        self.function, self.name, self.recording = function, name, cast(Recording | None, None)
        self._state, self._changes, self._record = state, changes, record
        self._captured = captured or function
        self._inputs: list[Tensor | None] = []
        self._key: tuple[Any, ...] = ()
        self._refused, self._said = "", set[str]()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Replayed":
        raise TypeError(f"{self.name}: a graph has no copy; make one for the copied module")

    def __call__(self, *inputs: Tensor | None, kind: Hashable = ()) -> tuple[Tensor, ...]:
        """``function(*inputs)``; what else tells calls apart is ``kind``."""
        if _plain_within or torch.compiler.is_compiling():
            return tuple(self.function(*inputs))
        state = self._state()
        key = (*(None if x is None else (x.shape, x.dtype, x.device) for x in inputs), kind)
        key += (tuple(tensor.data_ptr() for tensor in state),)
        reason = self._unfit(inputs, key)
        if not reason and self.recording is None:
            return self._capture(inputs, state, key)
        if reason:
            if reason not in self._said:
                self._said.add(reason)
                logger.info("%s operator by operator: %s", self.name, reason)
            with plainly():
                return tuple(self.function(*inputs))
        recording = cast(Recording, self.recording)
        self._fill(inputs)
        recording.replay()
        return tuple(output.clone() for output in recording.outputs)

    def _unfit(self, inputs: Sequence[Tensor | None], key: tuple[Any, ...]) -> str:
        """Why the graph does not serve this call; "" where it does."""
        if self._refused:
            return self._refused
        if {x.device.type for x in inputs if x is not None} != {self._record.device_type}:
            return "there is nothing to capture"
        if observed():
            return "its operators are counted, traced or hooked"
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            return "it is computed in chunks, or within a checkpoint"
        if self.recording is None or key == self._key:
            return ""
        if key[:-1] == self._key[:-1]:
            return "what it reads has moved"
        if key[:-2] == self._key[:-2]:
            return "settings have changed since it was captured"
        return f"its graph is for {_shapes(self._inputs)} alone"

    @torch.no_grad()
    def _fill(self, inputs: Sequence[Tensor | None]) -> None:
        kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for mine, x in zip(self._inputs, inputs, strict=True):
            if mine is not None and x is not None:
                kinds[x.dtype].append((mine, x))
        for pairs in kinds.values():
            torch._foreach_copy_([mine for mine, _ in pairs], [x for _, x in pairs])

    def _capture(
        self, inputs: Sequence[Tensor | None], state: Sequence[Tensor], key: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        """Results of the plain code; and the graph, where it gives the same."""
        device = next((x.device for x in inputs if x is not None and x.is_cuda), None)
        changed = list(state) if self._changes else []
        before, random = _copies(changed), _random_states(device)
        with plainly():  # on copies, as it may write into its inputs
            wanted = tuple(self.function(*_copies(inputs)))
        after, random_after = _copies(changed), _random_states(device)
        self._inputs = _copies(inputs)

        def restart() -> None:
            _put_back(changed, before)
            self._fill(inputs)
            _set_random_states(device, random)

        try:
            restart()
            with plainly():
                recording = self._record(lambda: self._captured(*self._inputs))
            restart()
            recording.replay()
            found = [output.clone() for output in recording.outputs]
            pairs: list[tuple[str, Sequence[Tensor], Sequence[Tensor], float]] = [("results", found, wanted, TOLERANCE)]
            if changed:
                moved, wished = ([a - b for a, b in zip(of, before, strict=True)] for of in (changed, after))
                pairs.append(("changes", moved, wished, TOLERANCE_OF_CHANGES))
            for what, mine, plain, tolerance in pairs:
                off, size = _distance(mine, plain)
                if not off <= tolerance * size:
                    self._refused = f"the {what} of its graph differ from the plain ones by {off:.1e} of {size:.1e}"
        except RuntimeError as error:  # also out of memory
            self._refused = f"no graph could be captured ({str(error).splitlines()[0]})"
        finally:
            _put_back(changed, after)
            _set_random_states(device, random_after)
        if self._refused:
            self._inputs = []
            logger.warning("%s gets no CUDA graph: %s", self.name, self._refused)
        else:
            self.recording, self._key = recording, key
            logger.info("%s: one CUDA graph, for %s", self.name, _shapes(self._inputs))
        return wanted


def _copies(tensors: Sequence[Any]) -> list[Any]:
    """Detached: a copy of a weight with a gradient would keep the node alive that takes it, on this stream."""
    return [None if tensor is None else tensor.detach().clone() for tensor in tensors]


def _put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def _random_states(device: torch.device | None) -> tuple[Tensor, ...]:
    return (torch.get_rng_state(), *([] if device is None else [torch.cuda.get_rng_state(device)]))


def _set_random_states(device: torch.device | None, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if device is not None:
        torch.cuda.set_rng_state(states[1], device)


def places_of(module: nn.Module, parameters: bool = True) -> Callable[[], list[Tensor]]:
    """The buffers of ``module``, and parameters, as they are when this is called: ``state`` of :class:`Replayed`."""
    kinds = ("_parameters", "_buffers") if parameters else ("_buffers",)
    slots = [(vars(part)[kind], name) for kind in kinds for part in module.modules() for name in vars(part)[kind]]
    return lambda: [tensor for of, name in slots if (tensor := of[name]) is not None]


def graphs_of(module: nn.Module) -> list[Graphed]:
    """What :func:`graph_training` has put into ``module``."""
    return [found for part in module.modules() for found in vars(part).values() if isinstance(found, Graphed)]


def graph_training(encoder: nn.Module) -> None:
    """Lets ``encoder`` train by CUDA graphs, in place; see :class:`Graphed`. Its state dict stays as it is."""
    method = "forward"
    if isinstance(encoder, SpectrogramModel):  # whose head and pooling are the caller's
        own = type(encoder).forward_features is not SpectrogramModel.forward_features
        method = "forward_features" if own else "forward_grid"
    setattr(encoder, method, Graphed(encoder, method))


def _shown(key: tuple[Any, ...]) -> str:
    return f"inputs of {' x '.join(map(str, key[0]))}"


def _shapes(inputs: Sequence[Tensor | None]) -> str:
    """The largest of the inputs stands for all."""
    largest = max((x for x in inputs if x is not None), key=Tensor.numel, default=None)
    return "no inputs" if largest is None else f"inputs of {' x '.join(map(str, largest.shape))}"


@torch.no_grad()
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
