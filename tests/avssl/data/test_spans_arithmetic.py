import numpy as np
import pytest

from avssl.data.spans import ClipSpan, center_span, frame_times, random_span, uniform_spans

SEGMENTS = [(0.0, 10.0), (3.0, 5.0), (3.0, 5.001), (0.0, 0.25), (3599.9, 3603.7), (1e5 + 0.1, 1e5 + 2.1)]


@pytest.mark.parametrize(("low", "high"), SEGMENTS)
@pytest.mark.parametrize("seconds", [0.1, 2.0, 30.0])
def test_spans_lie_inside_their_segment(low: float, high: float, seconds: float) -> None:
    rng = np.random.default_rng(0)
    spans = [random_span(rng, low, high, seconds) for _ in range(200)]
    spans += [center_span(low, high, seconds), *uniform_spans(low, high, seconds, 5)]
    for span in spans:
        assert low <= span.start
        assert span.end <= high
        assert span.seconds == seconds
        assert span.available == pytest.approx(min(seconds, high - low), abs=1e-6)


def test_random_spans_fill_the_segment_uniformly() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([random_span(rng, 2.0, 12.0, 2.0).start for _ in range(4000)])
    counts, _ = np.histogram(starts, bins=8, range=(2.0, 10.0))
    assert counts.sum() == 4000
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


def test_random_span_of_a_short_segment_is_all_of_it() -> None:
    assert random_span(np.random.default_rng(0), 1.0, 2.5, 4.0) == ClipSpan(1.0, 4.0, 1.5)


def test_center_span() -> None:
    assert center_span(2.0, 12.0, 4.0) == ClipSpan(5.0, 4.0, 4.0)


def test_uniform_spans_reach_from_end_to_end() -> None:
    assert [span.start for span in uniform_spans(2.0, 12.0, 4.0, 3)] == [2.0, 5.0, 8.0]
    assert uniform_spans(2.0, 12.0, 4.0, 1) == [center_span(2.0, 12.0, 4.0)]
    assert uniform_spans(2.0, 3.0, 4.0, 3) == [ClipSpan(2.0, 4.0, 1.0)] * 3


def test_frame_times_are_midpoints_of_the_available_media() -> None:
    assert frame_times(ClipSpan(10.0, 4.0, 4.0), 4).tolist() == [10.5, 11.5, 12.5, 13.5]
    assert frame_times(ClipSpan(10.0, 4.0, 1.0), 2).tolist() == [10.25, 10.75]
    assert frame_times(ClipSpan(10.0, 4.0, 4.0), 1).tolist() == [12.0]


@pytest.mark.parametrize(
    ("low", "high", "seconds"), [(2.0, 2.0, 1.0), (3.0, 2.0, 1.0), (-1.0, 2.0, 1.0), (0.0, 1.0, 0.0)]
)
def test_impossible_segments_are_refused(low: float, high: float, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"segment|clip_seconds"):
        center_span(low, high, seconds)


def test_no_frames_or_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="number of frames"):
        frame_times(ClipSpan(0.0, 1.0, 1.0), 0)
    with pytest.raises(ValueError, match="number of clips"):
        uniform_spans(0.0, 1.0, 1.0, 0)
