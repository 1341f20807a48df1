"""Fast blocks against plain ones: each kind, a class and its geometry, on a small input with random weights.

Values in evaluation, and values and gradients in training, with the same random numbers. Operators are compared in
float64, kernels in what they compute in. A result holds as long as the functions of the plain classes are the same
objects: a class that is edited in a running process is compared anew.
"""

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mast import model
from mast.fast.blocks import BLOCKS, PARTS, swap
from mast.fast.observers import observed

logger = logging.getLogger(__name__)

Kind = tuple[Any, ...]

# Largest difference in units of the largest value. What is edited shows in float64; the others look for broken kernels.
TOLERANCE = {"operators": 1e-8, "cpu": 1e-3}

_WRITTEN = {
    cls: [name for name, value in vars(cls).items() if inspect.isfunction(value)]
    for cls in (*BLOCKS, *PARTS, model.DepthwisePool, model.RelativeTable, model.AddBranch)
}
_GLOBALS = [name for name, value in vars(model).items() if inspect.isfunction(value)]
# Per block and way, and per kind and way: the functions that were compared; for a kind also the difference.
_seen: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, ...]]] = WeakKeyDictionary()
known_differences: dict[tuple[Kind, str], tuple[tuple[Any, ...], str]] = {}


def plain_class(block: nn.Module) -> type[nn.Module] | None:
    """The plain class of a block that is exactly of one kind, plain or fast; None for all else."""
    return next((plain for plain, fast in BLOCKS.items() if type(block) in (plain, fast)), None)


def kind_of(block: nn.Module) -> Kind:
    """Class and geometry: blocks of one kind differ in weights and in the length of their tables only."""
    kind: list[Any] = [plain_class(block)]
    for name, module in block.named_modules():
        settings = ("stride", "q_stride", "kv_stride", "k_stride", "heads", "factor", "eps", "drops")
        kind.append((name, *(getattr(module, setting, None) for setting in settings)))
        if not isinstance(module, model.RelativeTable):
            kind.append(tuple(None if p is None else tuple(p.shape) for p in module._parameters.values()))
    return tuple(kind)


def written() -> tuple[Any, ...]:
    """The functions that are the formula now."""
    names = vars(model)
    return (
        *[vars(cls).get(name) for cls, names in _WRITTEN.items() for name in names],
        *[names.get(name) for name in _GLOBALS],
    )


def why_unknown(block: nn.Module) -> str:
    """Why ``block`` is not one whose formula is known: a part of another class, or a patched one. "" where it is."""
    if plain_class(block) is None:
        return f"{type(block).__name__} is a class of its own"
    known = {*BLOCKS, *BLOCKS.values(), *PARTS, *PARTS.values()}
    known |= {model.DepthwisePool, model.RelativeTable, model.AddBranch}
    for name, module in block.named_modules():
        own = type(module) in known or type(module) in (nn.Linear, nn.LayerNorm)
        if not own:
            return f"{name} is a {type(module).__name__}"
        if any(callable(value) for key, value in vars(module).items() if key in ("forward", "residual", "shares")):
            return f"the forward of {name or 'the block'} is replaced"
    return ""


def difference(block: nn.Module, way: str) -> str:
    """How ``way`` differs from the plain block of this kind; "" where it does not. Compares once for each kind."""
    key, now = (kind_of(block), way), written()
    if key not in known_differences or known_differences[key][0] != now:
        known_differences[key] = (now, compare(block, way))
    return known_differences[key][1]


def confirmed(block: nn.Module, way: str) -> bool:
    """See ``mast.fast.blocks.confirmed``."""
    seen, now = _seen.get(block), written()
    if seen is not None and seen.get(way) == now:
        return True
    # Nothing can be compared under a tracer, nor with what FSDP made of a block: accelerate() did.
    if observed() or plain_class(block) is None:
        return True
    differs = difference(block, way)
    if differs:
        keep_plain(block, differs)
        warn_of_plain([block.__dict__.get("place", type(block).__name__)], differs)
        return False
    _seen.setdefault(block, {})[way] = now
    return True


def keep_plain(block: nn.Module, reason: str) -> None:
    """Make ``block`` plain, and remember why for ``backends``."""
    swap(block, fast=False)
    block.__dict__["plain_because"] = reason


def warn_of_plain(names: list[str], reason: str) -> None:
    """Say which blocks stay plain, and why."""
    logger.warning("%s: computed by the plain code, more slowly: %s", ", ".join(names), reason)


def compare(block: nn.Module, way: str) -> str:
    """As `difference`, computed anew: how ``way`` differs from the plain block, "" where it does not."""
    device = torch.device("cuda", torch.cuda.current_device()) if way == "cuda" else torch.device("cpu")
    try:
        with undisturbed(device):
            dtype = torch.float64 if way == "operators" else torch.float32
            plain = sample_block(block).to(device=device, dtype=dtype)
            fast = copy.deepcopy(plain)
            swap(fast, fast=True, kernels=(way,))
            _seen[fast] = dict.fromkeys(("operators", "cpu", "cuda"), written())
            x = sample_input(block).to(device=device, dtype=dtype)
            if way == "cuda":
                exact, rounded = values_and_gradients(plain, x), values_and_gradients(plain, x, half=True)
                for each in (True, False):  # operator by operator, and the parts that compiled code has
                    fast.by_branches = each  # type: ignore[assignment]
                    if differs := differing_in_half(exact, values_and_gradients(fast, x, half=True), rounded):
                        return differs
                return ""
            return differing(values_and_gradients(plain, x), values_and_gradients(fast, x), TOLERANCE[way])
    except Exception as error:  # whatever an edited block raises: its own caller shall see it, from its own code
        return f"it could not be compared ({type(error).__name__}: {error})"


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What a comparison runs in: none of the caller's modes and hooks; random states are left as they were."""
    with (
        _one_thread(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
        torch.device("cpu"),
        torch.autograd.graph.saved_tensors_hooks(_itself, _itself),  # not those of a checkpoint around
    ):
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from several threads, and on a busy machine these wait for each other for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sample_block(block: nn.Module) -> nn.Module:
    """A plain block of the same kind, with random weights, without hooks."""
    sample = copy.deepcopy(block).to_empty(device="cpu").requires_grad_()
    swap(sample, fast=False)
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for module in sample.modules():
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                getattr(module, hooks).clear()
            module._compiled_call_impl = None
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                if isinstance(module, nn.LayerNorm):
                    values = 0.2 * values + (name == "weight")
                elif parameter.ndim > 1 and not isinstance(module, model.RelativeTable):
                    values = values * values[0].numel() ** -0.5
                parameter.copy_(values)
    return sample


def sample_input(block: nn.Module) -> Tensor:
    """Random tokens that ``block`` takes, (2, 3, 5, dim) or (2, 5, dim)."""
    dim = int(block.norm1.weight.shape[0])  # type: ignore[union-attr,arg-type,index]
    shape = (2, 3, 5, dim) if isinstance(block, model.Block) else (2, 5, dim)  # odd, so that windows are cut off
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float32)


def values_and_gradients(block: nn.Module, x: Tensor, half: bool = False) -> dict[str, Tensor]:
    """Values in evaluation and in training, and all gradients, of the block's own random weights."""
    found: dict[str, Tensor] = {}
    x = x.to(torch.bfloat16) if half else x  # as from the block before it
    precision = torch.autocast(x.device.type, torch.bfloat16, enabled=half)
    with torch.no_grad(), precision:
        found["values"] = block.eval()(x)
    torch.default_generator.manual_seed(2)  # torch.manual_seed would move the states of all devices
    if x.is_cuda:
        torch.cuda.manual_seed(2)
    given = x.clone().requires_grad_()
    with precision:
        out = found["values in training"] = block.train()(given)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    (out * weight).sum().backward()
    leaves = [("the input", given), *block.named_parameters()]
    found |= {
        f"gradient of {name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves
    }
    block.zero_grad()
    return {name: value.detach().double() for name, value in found.items()}


def differing(wanted: dict[str, Tensor], computed: dict[str, Tensor], tolerance: float) -> str:
    """The first result whose largest difference is more than ``tolerance`` of its largest value."""
    largest = max(float(value.abs().max()) for name, value in wanted.items() if name.startswith("gradient"))
    for name, value in wanted.items():
        if computed[name].shape != value.shape:
            return f"fast and plain code differ in the shape of the {name}"
        scale = float(value.abs().max())
        if name.startswith("gradient"):
            # A shift of all keys changes no weight of the attention: that gradient is rounding alone, and counts as 0.
            scale = max(scale, 1e-2 * largest)
        error = float((computed[name] - value).abs().max())
        if not error <= tolerance * max(scale, 1e-6):
            return f"fast and plain code differ in the {name}, by {error:.1e} at a largest value of {scale:.1e}"
    return ""


def differing_in_half(wanted: dict[str, Tensor], computed: dict[str, Tensor], rounded: dict[str, Tensor]) -> str:
    """Half precision rounds much: kernels may err three times as much as the plain code in it, ``rounded``, does."""
    for group in ("values", "gradient"):
        exact, ours, plain = (
            torch.cat([value.flatten() for name, value in found.items() if name.startswith(group)])
            for found in (wanted, computed, rounded)
        )
        if ours.shape != exact.shape:
            return f"fast and plain code differ in the shape of the {group}"
        error, allowed = ((other - exact).norm() / exact.norm() for other in (ours, plain))
        if not error <= 3 * allowed + 0.02:
            return (
                f"fast and plain code differ in the {group}, by {float(error):.1e} of its norm, where the plain code "
                f"rounds by {float(allowed):.1e}"
            )
    return ""


def _itself(saved: Any) -> Any:
    return saved
