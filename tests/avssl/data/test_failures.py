import json
import logging
from dataclasses import dataclass, field

import pytest

from avssl.data.failures import DataError, Failure, FailureMonitor


@dataclass
class Counts:
    rows_read: int
    failures: list[Failure] = field(default_factory=list)
    missing: int = 0


def failed(count: int, reason: str = "not a media file") -> list[Failure]:
    return [Failure(f"{k}.mp4", reason) for k in range(count)]


def test_no_failure_no_error() -> None:
    monitor = FailureMonitor()
    for _ in range(50):
        monitor.update(Counts(8))
    assert monitor.summary() == {"seen": 400, "failed": 0, "share": 0.0, "reasons": {}, "first": None}


def test_the_first_cause_ends_a_run_in_which_all_first_clips_fail() -> None:
    monitor = FailureMonitor(abort_first=20)
    monitor.update(Counts(0, [Failure("root/first.mp4", "file not found"), *failed(18)]))
    with pytest.raises(DataError, match=r"all of the first 20 .*root/first\.mp4: file not found"):
        monitor.update(Counts(0, failed(1)))


def test_a_share_above_the_limit_aborts_once_enough_was_seen() -> None:
    monitor = FailureMonitor(max_share=0.2, min_seen=100)
    monitor.update(Counts(40, failed(30)))  # 43 %, but of 70 only
    with pytest.raises(DataError, match=r"31 of 101 clips failed, more than the 20%"):
        monitor.update(Counts(30, failed(1)))


def test_a_share_at_the_limit_goes_on() -> None:
    monitor = FailureMonitor(max_share=0.2)
    for _ in range(20):
        monitor.update(Counts(8, failed(2)))
    assert monitor.summary()["share"] == pytest.approx(0.2)


def test_a_training_batch_that_cannot_be_filled_aborts() -> None:
    with pytest.raises(DataError, match=r"1 clip\(s\) of a batch failed with all their replacements.*0\.mp4"):
        FailureMonitor().update(Counts(31, failed(9), missing=1))


def test_evaluation_counts_and_never_aborts() -> None:
    monitor = FailureMonitor(max_share=1.0)
    for _ in range(10):
        monitor.update(Counts(0, failed(20), missing=20))
    assert monitor.summary()["share"] == 1.0


def test_each_reason_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    monitor = FailureMonitor()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            monitor.update(Counts(60, [*failed(2), *failed(1, "no audio stream")]))
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "unreadable: 0.mp4: not a media file",
        "unreadable: 0.mp4: no audio stream",
    ]
    summary = monitor.summary()
    assert summary["reasons"] == {"not a media file": 6, "no audio stream": 3}
    assert json.loads(json.dumps(summary)) == summary


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="max_share"):
        FailureMonitor(max_share=20)
