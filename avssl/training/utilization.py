"""How fast a run trains, and how much of a GPU's arithmetic it uses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode


class UtilizationMeter:
    """Counts the floating-point operations of one step, forward and backward, and sets them against the device's peak.

    The result is MFU, model FLOPs utilization (Chowdhery et al. 2022, appendix B), where nothing is computed twice.
    With gradient caching or activation checkpointing what is computed again counts, too: that is hardware utilization.
    Devices whose peak is not known (CPUs) are not measured.

    Args:
        fabric: Launched Fabric, whose device and precision tell the peak.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.flops = 0
        self.peak = peak_flops(fabric.device, str(fabric.strategy.precision.precision))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what runs within, once; afterwards, or without a known peak, it does nothing."""
        if not self.peak or self.flops:
            yield
            return
        # Compiled graphs call kernels that the counter does not see.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self.flops = counter.get_total_flops()

    def share(self, steps_per_second: float) -> float | None:
        """Share of the device's peak, or None where it is not measured."""
        return self.flops * steps_per_second / self.peak if self.peak and self.flops else None


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second that ``device`` is sold for at ``precision``, or None where that is not known."""
    if device.type != "cuda":
        return None
    dtype: Any = torch.float32
    if precision.startswith("bf16"):
        dtype = torch.bfloat16
    elif precision.startswith("16"):
        dtype = torch.float16
    peak = get_available_flops(device, dtype)
    return float(peak) if peak else None


class Window:
    """Speed of the steps since it was made.

    Attributes:
        clips: Clips so far, of all processes.
        steps: Optimizer steps so far.
    """

    def __init__(self) -> None:
        self.clips, self.steps, self._waited, self._start = 0, 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent within counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def speed(self) -> dict[str, float]:
        """Clips and steps a second, and the share of the time that was spent waiting for data."""
        elapsed = time.perf_counter() - self._start
        rates = {"clips_per_second": self.clips / elapsed, "steps_per_second": self.steps / elapsed}
        return rates | {"data_wait": self._waited / elapsed}
