"""Windows over recordings of any length: sliding over sound that comes in blocks, or as the rows of a manifest."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from avssl.data.manifest import LABEL_PREFIX, Manifest
from avssl.data.media.audio import MISSING_SECONDS, MISSING_SHARE
from avssl.data.spans import MIN_SHARE, center_span, uniform_spans

# Seconds below which two times are the same.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Window:
    """``waveform`` (S,) float32, and the seconds ``start`` to ``end`` of the recording that it holds.

    The last one may hold less than a whole window: zeros follow, and ``end`` is where the sound ends.
    """

    start: float
    end: float
    waveform: np.ndarray


def sliding_windows(
    blocks: Iterable[np.ndarray], sample_rate: int, seconds: float, hop: float | None = None
) -> Iterator[Window]:
    """Windows of ``seconds`` every ``hop`` seconds (default: one after the other), each as soon as it is complete.

    The last one ends with the sound. One with less than 5 % of sound is left out, unless it is the only one. Memory
    is that of one window and one block.

    Args:
        blocks: consecutive (S,) float32.
        sample_rate: Hz of the blocks.

    Raises:
        ValueError: a window shorter than a sample, or no hop.
    """
    size = round(seconds * sample_rate)
    hop = seconds if hop is None else hop
    if size < 1 or round(hop * sample_rate) < 1:
        raise ValueError(f"window and hop must be positive, got {seconds} s and {hop} s")
    waiting = np.zeros(0, dtype=np.float32)
    number = first = 0  # of the next window; sample at which `waiting` begins
    reached = 0  # the end of the last window
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while True:
            begin = round(number * hop * sample_rate)
            drop = min(begin - first, len(waiting))
            waiting, first = waiting[drop:], first + drop
            if first < begin or len(waiting) < size:
                break
            yield Window(begin / sample_rate, (begin + size) / sample_rate, waiting[:size].copy())
            number, reached = number + 1, begin + size
    total, begin = first + len(waiting), round(number * hop * sample_rate)
    rest = waiting[begin - first :] if begin >= first else waiting
    if len(rest) and total > reached and (number == 0 or len(rest) >= MIN_SHARE * size):
        padded = np.zeros(size, dtype=np.float32)
        padded[: len(rest)] = rest
        yield Window(begin / sample_rate, total / sample_rate, padded)


def from_first_sound(
    blocks: Iterable[np.ndarray], sample_rate: int, covered: Sequence[tuple[float, float]]
) -> Iterator[np.ndarray]:
    """The blocks (S,) without what comes before the first sound: a window there would hold nothing.

    Args:
        blocks: from second 0 of a recording on.
        sample_rate: Hz of the blocks.
        covered: (start, end) of the seconds that have sound, which grows as blocks are taken.
    """
    first = 0  # sample at which the block begins
    for block in blocks:
        after = first + len(block)
        if covered and after > (begin := round(covered[0][0] * sample_rate)):
            yield block[max(0, begin - first) :]
        first = after


def has_sound(start: float, end: float, covered: Sequence[tuple[float, float]]) -> bool:
    """Whether so much of the seconds ``start`` to ``end`` has sound as a clip must have: as for `MediaFile.audio`."""
    there = sum(max(0.0, min(end, last) - max(start, first)) for first, last in covered)
    return end - start - there <= max(MISSING_SECONDS, MISSING_SHARE * (end - start))


def cut_into_windows(
    manifest: Manifest,
    seconds: float,
    mode: str = "center",
    *,
    modalities: Collection[str],
    count: int = 1,
    hop: float | None = None,
) -> tuple[Manifest, np.ndarray]:
    """A manifest with a row for each window of each clip, to be read with ``ClipDataset(mode="center")``.

    Args:
        manifest: Scanned clips.
        seconds: Length of a window.
        mode: "center", "uniform" (``count`` evenly spread ones; fewer where a clip is too short to tell them apart), or
            "all" (one every ``hop`` seconds, default one after the other; the last may be cut short as by
            `sliding_windows`).
        modalities: Streams that all have to run where windows are cut, see :meth:`Manifest.spans`.

    Returns:
        The windows, whose ``clip_id`` is made unique by their number and which have no labels, and (N,) the row of
        ``manifest`` that each comes from. A clip that has no known end gives no window.

    Raises:
        ValueError: another mode, or a length, count or hop that is not positive.
    """
    hop = seconds if hop is None else hop
    if mode not in ("center", "uniform", "all"):
        raise ValueError(f"windows: must be center, uniform or all, got {mode!r}")
    if not seconds > 0 or not hop > 0 or count < 1:
        raise ValueError(f"window, hop and count must be positive, got {seconds} s, {hop} s and {count}")
    sources: list[int] = []
    ids: list[str] = []
    starts: list[float] = []
    ends: list[float] = []
    lows, highs = (bounds.tolist() for bounds in manifest.spans(modalities))
    for row, (clip_id, low, high) in enumerate(zip(manifest.column("clip_id"), lows, highs, strict=True)):
        if not high > low:
            continue
        if mode == "all":
            spans = _hopped(low, high, seconds, hop)
        else:
            found = [center_span(low, high, seconds)] if mode == "center" else uniform_spans(low, high, seconds, count)
            spans = list(dict.fromkeys((span.start, span.end) for span in found))
        for number, (first, last) in enumerate(spans):
            sources.append(row)
            ids.append(f"{clip_id}#{number}")
            starts.append(first)
            ends.append(last)
    index = np.asarray(sources, dtype=np.int64)
    table = manifest.table.take(pa.array(index)).drop_columns([LABEL_PREFIX + head for head in manifest.heads])
    for name, values in (("clip_id", pa.array(ids, pa.string())), ("start", pa.array(starts, pa.float64()))):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    table = table.set_column(table.schema.get_field_index("end"), "end", pa.array(ends, pa.float64()))
    return Manifest(table, manifest.root, allow_absolute=manifest.allow_absolute), index


def _hopped(low: float, high: float, seconds: float, hop: float) -> list[tuple[float, float]]:
    """(start, end) of the windows of ``low..high``, by the rule of `sliding_windows`."""
    spans: list[tuple[float, float]] = []
    reached = low
    for number in itertools.count():
        start = low + number * hop
        if start + seconds > high + _ROUNDING:
            break
        spans.append((start, min(start + seconds, high)))
        reached = start + seconds
    rest = high - start
    if rest > 0 and high > reached + _ROUNDING and (not spans or rest >= MIN_SHARE * seconds):
        spans.append((start, high))
    return spans
