"""Fast blocks against plain ones: each kind, a class and its geometry, on a small input with random weights.

Values in evaluation, and values and gradients in training, with the same random numbers. Operators are compared in
float64, kernels in what they compute in. A result holds as long as the functions of the plain classes are the same
objects: a class that is edited in a running process is compared anew.
"""

import copy
import inspect
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mast import model
from mast.fast.blocks import BLOCKS, PARTS, swap
from mast.fast.observers import observed

logger = logging.getLogger(__name__)

Kind = tuple[Any, ...]

# Largest difference, in units of the largest value, for each way; gradients of half precision sum many roundings.
TOLERANCE = {"operators": 1e-8, "cpu": 1e-3, "cuda": 5e-2}

_WRITTEN = {
    cls: [name for name, value in vars(cls).items() if inspect.isfunction(value)]
    for cls in (*BLOCKS, *PARTS, model.RelativeTable, model.AddBranch)
}
_GLOBALS = [name for name, value in vars(model).items() if inspect.isfunction(value)]
# Per block and way, and per kind and way: the functions that were compared; for a kind also the difference.
_seen: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, ...]]] = WeakKeyDictionary()
_results: dict[tuple[Kind, str], tuple[tuple[Any, ...], str]] = {}


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


def unlike(block: nn.Module) -> str:
    """Why ``block`` is not one whose formula is known: a part of another class, or a patched one. "" where it is."""
    if plain_class(block) is None:
        return f"{type(block).__name__} is a class of its own"
    known = {*BLOCKS, *BLOCKS.values(), *PARTS, *PARTS.values(), model.RelativeTable, model.AddBranch}
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
    if key not in _results or _results[key][0] != now:
        _results[key] = (now, _compare(block, way))
    return _results[key][1]


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
        keep_plain(block, type(block).__name__, differs)
        return False
    _seen.setdefault(block, {})[way] = now
    return True


def keep_plain(block: nn.Module, name: str, reason: str, warn: bool = True) -> None:
    """Make ``block`` plain, remember why for ``backends``, and warn."""
    swap(block, fast=False)
    block.plain_because = reason
    if warn:
        logger.warning("%s is computed by its plain code, more slowly: %s", name, reason)


def _compare(block: nn.Module, way: str) -> str:
    device = torch.device("cuda", torch.cuda.current_device()) if way == "cuda" else torch.device("cpu")
    try:
        with (
            torch.random.fork_rng([device] if way == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
            torch.autograd.graph.saved_tensors_hooks(_itself, _itself),  # not those of a checkpoint around
        ):
            dtype = torch.float64 if way == "operators" else torch.float32
            plain = _sample(block).to(device=device, dtype=dtype)
            fast = copy.deepcopy(plain)
            swap(fast, fast=True, kernels=(way,))
            _seen[fast] = dict.fromkeys(TOLERANCE, written())
            x = _input(block).to(device=device, dtype=dtype)
            return _differing(plain, fast, x, way)
    except Exception as error:  # whatever an edited block raises: its own caller shall see it, from its own code
        return f"it could not be compared ({type(error).__name__}: {error})"


def _sample(block: nn.Module) -> nn.Module:
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


def _input(block: nn.Module) -> Tensor:
    dim = block.norm1.normalized_shape[0]  # type: ignore[union-attr,index]
    shape = (2, 3, 5, dim) if isinstance(block, model.Block) else (2, 5, dim)  # odd, so that windows are cut off
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float32)


def _differing(plain: nn.Module, fast: nn.Module, x: Tensor, way: str) -> str:
    results: list[dict[str, Tensor]] = []
    for block in (plain, fast):
        found: dict[str, Tensor] = {}
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=way == "cuda" and block is fast):
            found["values"] = block.eval()(x)
        torch.default_generator.manual_seed(2)  # torch.manual_seed would move the states of all devices
        if x.is_cuda:
            torch.cuda.manual_seed(2)
        given = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=way == "cuda" and block is fast):
            out = found["values in training"] = block.train()(given)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
        (out * weight).sum().backward()
        found["gradient of the input"] = given.grad  # type: ignore[assignment]
        for name, parameter in block.named_parameters():
            found[f"gradient of {name}"] = torch.zeros(0) if parameter.grad is None else parameter.grad
        results.append(found)
    wanted, computed = ({name: value.detach() for name, value in found.items()} for found in results)
    gradients = [value for name, value in wanted.items() if name.startswith("gradient") and value.numel()]
    largest = max(float(value.abs().max()) for value in gradients)
    for name, value in wanted.items():
        other = computed[name]
        if other.shape != value.shape:
            return f"{name} differs in shape"
        scale = float(value.abs().max()) if value.numel() else 0.0
        if name.startswith("gradient"):
            # A shift of all keys changes no weight of the attention: that gradient is rounding alone, and counts as 0.
            scale = max(scale, 1e-2 * largest)
        error = float((other.double() - value.double()).abs().max()) if value.numel() else 0.0
        if not error <= TOLERANCE[way] * max(scale, 1e-6):
            return f"{name} differs from it by {error:.1e} of {scale:.1e}"
    return ""


def _itself(saved: Any) -> Any:
    return saved
