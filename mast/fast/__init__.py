"""What makes the models fast, and the one place where it is put in: :func:`accelerate`.

``mast.model`` and ``mast.ast`` are the formulas. Here is what computes the same: operators that need less memory
(``widened``, ``recompute``), compiled kernels for CPUs (``cpu``), Triton kernels for GPUs (``cuda``). ``blocks`` puts
them together, ``comparison`` compares every kind of block with the plain one.
"""

from collections.abc import Iterator
from typing import Literal, Protocol, TypeVar, cast, get_args, runtime_checkable

import torch
from torch import nn

from mast.fast import comparison, cuda
from mast.fast.blocks import BLOCKS, FastBlock, swap
from mast.fast.cpu import encoder
from mast.fast.observers import observed
from mast.model import Block

Backend = Literal["auto", "reference", "cpu", "cuda"]
Model = TypeVar("Model", bound=nn.Module)


@runtime_checkable
class OwnKernels(Protocol):
    """A part of a model of another package that has kernels beside its plain code, and compares them itself."""

    def use_kernels(self, kernels: tuple[str, ...]) -> str:
        """Use those of these devices, if any; returns why not, where they differ from the plain code, or ""."""

    def backend(self) -> str:
        """What computes it where its parameters are now, as `backends` describes it."""


_default: Backend = "auto"


def set_backend(backend: Backend) -> None:
    """Choose the backend of the models that ``create_model`` and ``from_pretrained`` build from now on.

    Raises:
        ValueError, RuntimeError: see :func:`accelerate`.
    """
    global _default
    _check(backend)
    _default = backend


def default_backend() -> Backend:
    """What :func:`set_backend` chose; "auto" at first."""
    return _default


def _check(backend: str) -> None:
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r} must be one of {', '.join(get_args(Backend))}")
    if backend == "cpu" and encoder.library() is None:
        raise RuntimeError("backend=cpu: no kernels can be built here (no C++ compiler, or MAST_NATIVE=0); use auto")
    if backend == "cuda" and not (cuda.fits(16) and torch.cuda.is_available()):
        raise RuntimeError("backend=cuda: there is no GPU with Triton here; use auto")


def accelerate(model: Model, backend: Backend = "auto") -> Model:
    """Put fast blocks in the place of the plain ones of ``mast.model`` and ``mast.ast`` within ``model``, or back.

    Names and values of parameters, hooks, and the objects themselves stay: a block changes its class. Before it does,
    its kind (class and geometry) is compared with the plain code on a small input, in evaluation and with gradients;
    random states are left as they were. Where the results differ, or a part is of a class of its own or has a patched
    ``forward``, the plain block stays, and a warning names it: an edited model is never computed by another formula.
    Code that is edited in a running process, and a model that moves to another device, are compared at the next call.

    Args:
        model: anything that contains blocks, or parts with kernels of their own (`OwnKernels`); changed in place.
        backend: "auto": what is fastest on the device of each input. "reference": the plain code. "cpu", "cuda": the
            kernels of this device alone, and torch's operators elsewhere.

    Returns:
        ``model``.

    Raises:
        ValueError: an unknown backend, or blocks that were sharded while they were fast.
        RuntimeError: the kernels that were asked for by name cannot run here.
    """
    _check(backend)
    kernels = ("cpu", "cuda") if backend == "auto" else (backend,)
    kept: dict[str, list[str]] = {}
    for name, block in _blocks(model):
        if comparison.plain_class(block) is None and isinstance(block, tuple(BLOCKS.values())):
            raise ValueError(f"{name} is sharded (a {type(block).__name__}); call accelerate before sharding")
        block.__dict__.pop("plain_because", None)
        block.__dict__["place"] = name  # for warnings
        if backend == "reference":
            swap(block, fast=False)
            continue
        reason = comparison.why_unknown(block)
        for way in [] if reason or observed() else ways(block, kernels):
            reason = reason or comparison.difference(block, way)
        if reason:
            comparison.keep_plain(block, reason)
            kept.setdefault(reason, []).append(name)
        else:
            swap(block, fast=True, kernels=kernels)
    for name, part in _own_kernels(model):
        if reason := part.use_kernels(() if backend == "reference" else kernels):
            kept.setdefault(reason, []).append(name)
    for reason, names in kept.items():
        comparison.warn_of_plain(names, reason)
    return model


def backends(model: nn.Module) -> dict[str, str]:
    """What computes each block of ``model`` where its parameters are now: name -> description.

    "reference" is the plain code, with the reason where a fast one was refused; "cpu" and "cuda" are the kernels, where
    types and sizes fit them at the call; "operators" are torch's, arranged to need less memory.
    """
    found = {}
    for name, block in _blocks(model):
        reason = block.__dict__.get("plain_because", "")
        if isinstance(block, tuple(BLOCKS.values())):
            found[name] = ways(block, cast(FastBlock, block).kernels)[-1]
        else:
            found[name] = f"reference: {reason}" if reason else "reference"
    return found | {name: part.backend() for name, part in _own_kernels(model)}


def ways(block: nn.Module, kernels: tuple[str, ...]) -> list[str]:
    """How ``block`` may be computed where its parameters are, the fastest last."""
    device = next(block.parameters()).device.type
    found = ["operators"]
    if isinstance(block, Block) and device in kernels:
        dim = block.attn.proj.in_features // block.attn.heads
        if device == "cuda" and cuda.fits(dim):
            found.append("cuda")
        if device == "cpu" and encoder.fits(block.norm1.normalized_shape[0], dim, block.mlp.fc1.out_features):
            found.append("cpu")
    return found


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    plain = tuple(BLOCKS)
    for name, module in model.named_modules():
        if isinstance(module, plain):
            yield name or type(module).__name__, module


def _own_kernels(model: nn.Module) -> Iterator[tuple[str, OwnKernels]]:
    for name, module in model.named_modules():
        if isinstance(module, OwnKernels):
            yield name or type(module).__name__, module
