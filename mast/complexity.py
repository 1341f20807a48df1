"""Parameters, multiply-accumulates and tokens of a model, counted on its real forward pass without computing it.

Two conventions are in use for multiply-accumulates (MACs), and both are reported: *linear and convolution* only, as
most profilers count, and *total*, with the products inside attention (q k^T, weights v, relative positions).
Attention is counted as its formula says, not as it is evaluated: the widened heads of ``mast.relative`` don't count.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mast.ast import AST, AstBlock
from mast.attention import PoolingAttention
from mast.model import MAST
from mast.registry import create_model


@dataclass(frozen=True)
class Complexity:
    """Counts for one sample.

    Attributes:
        name: of the model.
        parameters: trained values.
        linear_macs: MACs of linear layers and convolutions.
        attention_macs: MACs inside attention.
        grids: per stage, (F, T) of its output; one entry (1, N) for a model without a grid.
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
        model = create_model(name, num_classes=num_classes, **overrides).eval()
    return measure_module(model, mels=mels, frames=frames)


@torch.no_grad()
def measure_module(model: nn.Module, *, mels: int = 128, frames: int = 1024) -> Complexity:
    """Count a MAST or an AST for one spectrogram of ``mels`` x ``frames``, on the model's device."""
    attention = 0
    grids: list[tuple[int, int]] = []

    def count_attention(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal attention
        if isinstance(module, PoolingAttention):
            attention += module.macs((args[0].shape[1], args[0].shape[2]))
        elif isinstance(module, AstBlock):
            attention += module.macs(args[0].shape[1])

    def note_grid(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        grids.append((output.shape[1], output.shape[2]) if output.ndim == 4 else (1, output.shape[1]))

    if isinstance(model, MAST):
        stages = list(model.stages)
    elif isinstance(model, AST):
        stages = [model.blocks]
    else:
        raise TypeError(f"can't count a {type(model).__name__}; MAST and AST are known")
    handles = [module.register_forward_hook(count_attention) for module in model.modules()]
    handles += [stage.register_forward_hook(note_grid) for stage in stages]
    device = next(model.parameters()).device
    try:
        with _LinearMacs() as linear:
            model(torch.zeros(1, 1, mels, frames, device=device))
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(model.name or type(model).__name__, parameters, linear.count, attention, tuple(grids))


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
