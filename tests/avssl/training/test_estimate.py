"""The estimate of a run's time on a CPU: counts against known ones, and who is warned."""

import logging

import pytest
import torch

from avssl.config import AudioConfig, FinetuneConfig, PretrainConfig, VideoConfig, resolve
from avssl.training import checks
from avssl.training.checks import macs_of_clip, macs_per_second, warn_of_long_run
from avssl.training.initialization import complete_finetuning, complete_pair
from mast.complexity import measure


def test_macs_are_those_of_the_encoders() -> None:
    config = complete_finetuning(FinetuneConfig(audio=AudioConfig("mast_tiny")), None)
    counted = measure("mast_tiny", num_classes=0, frames=1022)
    # Attention is counted as it is computed, on widened heads, so that there are a few more than the formula has.
    assert counted.linear_macs < macs_of_clip(config, 10.24) < 1.35 * counted.total_macs
    # torchvision states 40.52 GFLOPS, of multiply-accumulates, for R(2+1)D-18 on 16 frames of 112 x 112.
    seen = complete_finetuning(FinetuneConfig(modality="video", video=VideoConfig("r2plus1d_18")), None)
    assert macs_of_clip(seen, 1.0) == pytest.approx(40.52e9, rel=0.02)
    both = complete_pair(PretrainConfig(audio=AudioConfig("mast_tiny"), video=VideoConfig("r2plus1d_18")))
    assert macs_of_clip(both, 10.24) == pytest.approx(macs_of_clip(config, 10.24) + macs_of_clip(seen, 1.0))


def test_a_gpus_recipe_is_told_before_it_starts_and_a_short_run_is_not(monkeypatch, caplog) -> None:
    monkeypatch.setattr(checks, "macs_per_second", lambda: 1e11)
    large = complete_pair(resolve(PretrainConfig, [], ["large"]))
    small = complete_pair(resolve(PretrainConfig, [], ["small"]))
    with caplog.at_level(logging.WARNING):
        assert warn_of_long_run(small, 10_000, 4.0) < 3600
        assert not caplog.records
        seconds = warn_of_long_run(large, 300_000, 10.0)
        warn_of_long_run(small, 3_000_000, 4.0)
    assert 15 * 86400 < seconds < 30 * 86400  # 300 000 clips of about 100 GMAC, thrice for a step, at 50 GMAC a second
    first, second = (record.message for record in caplog.records)
    assert f"about {seconds / 86400:.0f} days (an estimate" in first and "--config small is for a CPU" in first
    assert "fewer optim.epochs" in second and "--config small" not in second


def test_the_speed_of_this_cpu_is_measured() -> None:
    assert 1e8 < macs_per_second(1) < 1e14


def test_neither_sizes_nor_the_estimate_draw_random_numbers() -> None:
    """A run draws the same weights with them and without."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    config = complete_pair(PretrainConfig(audio=AudioConfig("mast_nano"), video=VideoConfig("tiny")))
    assert macs_of_clip(config, 1.0) > 0
    assert torch.equal(torch.random.get_rng_state(), before)
