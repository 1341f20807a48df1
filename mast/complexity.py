"""Parameters, multiply-accumulates and tokens of a model, counted on its real forward pass without computing it.

Two conventions are in use for multiply-accumulates (MACs), and both are reported: *linear and convolution* only, as
most profilers count, and *total*, with the products inside attention (q k^T, weights v, relative positions).
The plain code is counted, not what ``mast.fast`` makes of it: the widened heads of ``mast.fast.widened`` don't count.
"""

import copy
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mast.base import SpectrogramModel
from mast.fast import accelerate
from mast.registry import create_model


@dataclass(frozen=True)
class Complexity:
    """Counts for one sample.

    Attributes:
        name: of the model.
        parameters: trained values.
        linear_macs: MACs of linear layers and convolutions.
        attention_macs: MACs of all other products, which are those inside attention.
        grids: (F, T) of the blocks' outputs, equal neighbours once; (1, N) for tokens without a grid.
    """

    name: str
    parameters: int
    linear_macs: int
    attention_macs: int
    grids: tuple[tuple[int, int], ...]

    @property
    def total_macs(self) -> int:
        """MACs of everything."""
        return self.linear_macs + self.attention_macs


class _LinearMacs(TorchFunctionMode):
    """Sums the MACs of linear and convolution calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv2d, torch.conv2d):
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            self.count += out.numel() * (weight.numel() // weight.shape[0])
        return out


def measure(name: str, *, num_classes: int = 527, mels: int = 128, frames: int = 1024, **overrides: Any) -> Complexity:
    """Count a registered model for one spectrogram of ``mels`` x ``frames``; ``overrides`` go to ``create_model``."""
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes, backend="reference", **overrides).eval()
    return measure_module(model, mels=mels, frames=frames)


@torch.no_grad()
def measure_module(model: SpectrogramModel, *, mels: int = 128, frames: int = 1024) -> Complexity:
    """Count any model of ``mast.base`` for one spectrogram of ``mels`` x ``frames``."""
    plain = accelerate(copy.deepcopy(model).to("meta"), "reference")
    outputs: list[tuple[int, ...]] = []

    def note_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        tokens = output if isinstance(output, Tensor) else output[0]
        outputs.append(tuple((tokens.movedim(1, -1) if model.channels_first and tokens.ndim == 4 else tokens).shape))

    for block in plain.blocks:
        block.register_forward_hook(note_output)
    # The counter knows the products of the plain attention; the fused ones differ between devices.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as every, _LinearMacs() as linear:
        plain(torch.zeros(1, 1, mels, frames, device="meta"))
    distinct = [shape for shape, _ in groupby(outputs)]
    grids = tuple((shape[1], shape[2]) if len(shape) == 4 else (1, shape[1]) for shape in distinct)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    attention = every.get_total_flops() // 2 - linear.count
    return Complexity(model.name or type(model).__name__, parameters, linear.count, attention, grids)


def table(rows: list[Complexity], baseline: Complexity) -> str:
    """Text table; the last column says how many times fewer MACs than ``baseline``, in both conventions."""
    header = ("model", "params", "MACs lin+conv", "MACs total", "tokens per stage", f"fewer MACs than {baseline.name}")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        grids = ", ".join(f"{f * t} ({f}x{t})" if f > 1 else str(t) for f, t in row.grids)
        ratios = (baseline.linear_macs / row.linear_macs, baseline.total_macs / row.total_macs)
        cells = (f"{row.parameters / 1e6:.2f} M", f"{row.linear_macs / 1e9:.2f} G", f"{row.total_macs / 1e9:.2f} G")
        lines.append((row.name, *cells, grids, f"{ratios[0]:.2f}x / {ratios[1]:.2f}x"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
