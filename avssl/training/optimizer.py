"""Optimizer, learning-rate schedule, and the moving average of the weights."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from avssl.bounds import bounds_of
from avssl.training.settings import OptimConfig

Scaling = Literal["none", "linear", "sqrt"]
BOUNDS = bounds_of(OptimConfig)


def total_steps(optim: OptimConfig, clips: int, world_size: int) -> int:
    """Optimizer steps of a run: ``max_steps``, or as many as ``epochs`` passes take."""
    if optim.max_steps is not None:
        return optim.max_steps
    per_epoch = max(1, clips // (optim.batch_size * world_size * optim.accumulate))
    return max(1, round(optim.epochs * per_epoch))


def scaled_lr(lr: float, rule: Scaling, batch: int, base_batch: int) -> float:
    """The learning rate for a global ``batch``, where ``lr`` was tuned for ``base_batch``.

    Args:
        lr: Learning rate at ``base_batch``.
        rule: linear (Goyal et al. 2017), sqrt (Krizhevsky 2014; the usual choice with Adam), or none.
        batch: Clips of an optimizer step over all processes.
        base_batch: Clips of a step that ``lr`` was tuned for.
    """
    BOUNDS["base_batch"].check("optim.base_batch", base_batch)
    factors = {"none": 1.0, "linear": batch / base_batch, "sqrt": math.sqrt(batch / base_batch)}
    return lr * factors[rule]


def make_optimizer(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    layer_decay: float = 1.0,
    fused: bool = True,
) -> Optimizer:
    """AdamW whose weight decay spares biases, norms, and what a module lists in ``no_weight_decay()``.

    Args:
        module: Parameters without gradient are left out.
        lr: Peak learning rate.
        weight_decay: Of the parameters that are not spared.
        betas: AdamW's.
        layer_decay: Layer-wise learning-rate decay (Clark et al. 2020, BEiT): each layer of an encoder that tells its
            layers (``layer_of``, ``num_layers``; MAST and AST do) learns this much slower than the one above it.
        fused: One kernel for all parameters. Not with fp16: it would unscale gradients itself, after they are clipped.
    """
    BOUNDS["layer_decay"].check("optim.layer_decay", layer_decay)
    spared: set[str] = set()
    scales: dict[str, float] = {}
    for prefix, child in module.named_modules():
        if callable(names := getattr(child, "no_weight_decay", None)):
            spared |= {f"{prefix}.{name}".lstrip(".") for name in names()}
        if layer_decay < 1 and callable(layer_of := getattr(child, "layer_of", None)):
            for name, _ in child.named_parameters():
                scales[f"{prefix}.{name}".lstrip(".")] = layer_decay ** (child.num_layers - layer_of(name))
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in spared else weight_decay
            groups[scales.get(name, 1.0), decay].append(parameter)
    ordered = sorted(groups, key=lambda key: (-key[0], -key[1]))
    return torch.optim.AdamW(
        [{"params": groups[scale, decay], "weight_decay": decay, "lr": lr * scale} for scale, decay in ordered],
        lr=lr,
        betas=betas,
        fused=fused,
    )


def make_scheduler(optimizer: Optimizer, *, max_steps: int, warmup: float, lr: float, min_lr: float) -> Any:
    """Linear warm-up over a ``warmup`` share of ``max_steps``, then a cosine from ``lr`` to ``min_lr``."""
    warmup_steps = min(round(warmup * max_steps), max_steps - 1)
    return CosineWarmupScheduler(optimizer, warmup_steps, max_steps, start_value=1.0, end_value=min_lr / lr)


class ExponentialAverage(AveragedModel):
    """A copy of a model that follows it: after each update it is d * average + (1 - d) * model.

    After n updates, d = min(decay, (1 + n) / (10 + n)): rising, as in TensorFlow's ExponentialMovingAverage, so that
    short runs forget their random start. Buffers, such as the statistics of a batch norm, are the model's own.

    The number of updates stays in the CPU's memory, whatever the weights do: torch's own update asks the device for it
    four times.

    Raises:
        ValueError: when ``decay`` is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        BOUNDS["ema"].check("optim.ema", decay)
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follows ``model``, which has the parameters and buffers of the one that was copied."""
        average: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        updates = int(self.n_averaged)
        if updates == 0:
            torch._foreach_copy_(average, current)
        else:
            torch._foreach_lerp_(average, current, 1 - min(self.decay, (1 + updates) / (10 + updates)))
        for mine, its in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
        self.n_averaged += 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExponentialAverage":
        updates = self.n_averaged
        super()._apply(fn, recurse)
        self.n_averaged = updates
        return self
