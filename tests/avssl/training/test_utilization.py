"""FLOPs of a step against the formula; nothing is measured where the peak is not known."""

from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from avssl.training import utilization
from avssl.training.utilization import UtilizationMeter, peak_flops


def test_counts_forward_and_backward_once() -> None:
    meter = UtilizationMeter(Fabric(accelerator="cpu", devices=1))
    meter.peak = 1e6
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(3, 5, requires_grad=True)
    for _ in range(2):
        with meter.counting():
            layer(x).sum().backward()
    assert meter.flops == 3 * 2 * 3 * 5 * 7  # the product, and its gradients for weight and input
    assert meter.share(10.0) == pytest.approx(10 * 630 / 1e6)


def test_a_cpu_is_not_measured() -> None:
    meter = UtilizationMeter(Fabric(accelerator="cpu", devices=1))
    with meter.counting():
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert meter.flops == 0 and meter.share(10.0) is None
    assert peak_flops(torch.device("cpu"), "bf16-mixed") is None


@pytest.mark.gpu
def test_a_gpu_has_a_peak() -> None:
    device = torch.device("cuda:0")
    half, single = peak_flops(device, "bf16-mixed"), peak_flops(device, "32-true")
    assert half is None or single is None or half > single


def test_a_window_tells_rates_and_the_share_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(utilization, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    window = utilization.Window()
    with window.waiting():
        window.steps, window.clips = 5, 20
    assert window.speed() == {"clips_per_second": 2.0, "steps_per_second": 0.5, "data_wait": 0.3}
