"""The monitor of collapse: when it tells, and when not."""

import math

import pytest

from avssl.evaluation.diagnostics import CollapseMonitor


def told(monitor: CollapseMonitor, ranks: list[float], name: str = "audio", first: int = 1) -> list[int]:
    """Steps at which the monitor said something."""
    rows = [{f"train/diagnostics/{name}_rank": rank} for rank in ranks]
    return [step for step, row in enumerate(rows, start=first) if monitor.see(row, step)]


def test_tells_once_when_the_average_falls_below_the_bound() -> None:
    # Averages of three: 2.0, 1.73, 1.4, ...
    assert told(CollapseMonitor(1.5, window=3), [3.0, 2.0, 1.0, 2.2, 1.0, 1.0, 1.0, 1.0]) == [5]
    message = CollapseMonitor(1.5, window=1).see({"train/diagnostics/video_rank": 1.25}, 70)
    assert message is not None
    assert "step 70" in message and "video_rank was 1.25" in message and "collapse_rank 1.5" in message


def test_keeps_quiet_during_warm_up_above_the_bound_and_when_turned_off() -> None:
    assert told(CollapseMonitor(1.5, after=10, window=2), [1.0] * 11) == []
    assert told(CollapseMonitor(1.5, after=10, window=2), [1.0] * 12) == [12]
    assert told(CollapseMonitor(1.5, window=2), [1.5] * 9) == []
    assert told(CollapseMonitor(0, window=2), [0.0] * 9) == []


def test_counts_modalities_apart_and_leaves_out_what_it_cannot_judge() -> None:
    monitor = CollapseMonitor(1.5, window=2)
    assert told(monitor, [1.0], "audio") == told(monitor, [1.0], "video") == []
    assert told(monitor, [math.nan, math.nan], "audio", first=2) == []
    assert monitor.see({"train/loss": 1.0, "val/diagnostics/audio_rank": 1.0}, 4) is None
    assert told(monitor, [1.0], "audio", first=5) == [5]


def test_bad_bound_is_named() -> None:
    for bound in (-1.0, math.nan):
        with pytest.raises(ValueError, match="collapse_rank: must be at least 0"):
            CollapseMonitor(bound)
