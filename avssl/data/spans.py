"""Where in a file a clip lies: arithmetic on seconds, shared by audio and frames so that both show the same span."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A clip of which the needed streams cover a smaller share would be judged by its padding: it is not cut.
MIN_SHARE = 0.05
# Why a clip cannot be cut.
OUTSIDE = "segment outside file"
NO_CHANNEL = "no such channel"  # of those that a file has
NO_COMMON_TIME = "sound and pictures do not overlap"
TOO_LITTLE = "streams cover too little of the clip"


@dataclass(frozen=True)
class ClipSpan:
    """A clip of ``seconds`` that starts at ``start`` and of which ``available`` seconds exist.

    Args:
        start: Second in the file.
        seconds: Nominal length of the clip.
        available: Length that the segment holds, at most ``seconds``; the rest is padding at the end.
    """

    start: float
    seconds: float
    available: float

    @property
    def end(self) -> float:
        """Second in the file at which the clip's media ends."""
        return self.start + self.available


def _span(start: float, low: float, high: float, seconds: float) -> ClipSpan:
    # The subtraction of two large starts may leave 1e-10 s beyond the segment: cut, never overrun.
    start = min(max(start, low), max(low, high - seconds))
    return ClipSpan(start, seconds, min(seconds, high - start))


def _check(low: float, high: float, seconds: float) -> None:
    if not seconds > 0:
        raise ValueError(f"clip_seconds must be positive, got {seconds}")
    if not 0 <= low < high:
        raise ValueError(f"a segment needs 0 <= start < end, got {low}..{high}")


def covered(start: Any, end: Any, duration: Any, streams: Sequence[tuple[Any, Any]] = ()) -> tuple[Any, Any]:
    """The part of a segment that its file, and every one of ``streams``, covers.

    The one rule by which everything is cut: training, evaluation, windows, caches, reports.

    Args:
        start, end: Of the segment, in seconds of the file; NaN: the bounds of the file.
        duration: Of the file.
        streams: (start, end) of each stream that a clip needs, NaN where unknown: then second 0 and the file's end.

    Returns:
        ``(low, high)`` in seconds, scalars or (N,) as the arguments are. Nothing is covered where ``high <= low``;
        ``high`` is NaN where no end is known.
    """
    low, high = np.fmax(start, 0.0), np.fmin(end, duration)
    for first, last in streams:
        low, high = np.fmax(low, first), np.fmin(high, last)
    return low, high


def why_not_cut(low: float, high: float, outside: bool, share: float) -> str:
    """Why no clip is cut from `covered` ``low..high``; "" where one is.

    Args:
        low, high: Seconds.
        outside: Whether one of the streams has nothing of the segment.
        share: Of a clip, how much is covered, 0 to 1.
    """
    if high <= low:
        return OUTSIDE if outside else NO_COMMON_TIME
    return TOO_LITTLE if share < MIN_SHARE else ""


def random_span(rng: np.random.Generator, low: float, high: float, seconds: float) -> ClipSpan:
    """A span of ``seconds`` uniformly inside the segment ``low..high`` (seconds); all of a segment that is shorter."""
    _check(low, high, seconds)
    return _span(low + rng.random() * max(0.0, high - low - seconds), low, high, seconds)


def center_span(low: float, high: float, seconds: float) -> ClipSpan:
    """The span in the middle of the segment ``low..high``; all of a segment that is shorter."""
    _check(low, high, seconds)
    return _span(low + max(0.0, high - low - seconds) / 2, low, high, seconds)


def uniform_spans(low: float, high: float, seconds: float, count: int) -> list[ClipSpan]:
    """``count`` spans from the segment's first to its last, evenly spaced; one is the centre.

    A segment shorter than ``seconds`` gives the same span ``count`` times, so that every row has as many clips.
    """
    _check(low, high, seconds)
    if count < 1:
        raise ValueError(f"the number of clips must be at least 1, got {count}")
    if count == 1:
        return [center_span(low, high, seconds)]
    room = max(0.0, high - low - seconds)
    return [_span(low + room * k / (count - 1), low, high, seconds) for k in range(count)]


def frame_times(span: ClipSpan, count: int) -> np.ndarray:
    """Midpoints of ``count`` equal parts of the span's available media: (count,) float64 seconds in the file.

    Midpoints, because a span's very end may lie beyond the last frame.
    """
    if count < 1:
        raise ValueError(f"the number of frames must be at least 1, got {count}")
    return span.start + (np.arange(count) + 0.5) / count * span.available
