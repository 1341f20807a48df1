"""Windows: over blocks cut anywhere, and as rows of a manifest, by one rule."""

import numpy as np
import pytest

from avssl.data.manifest import Manifest
from avssl.data.spans import MIN_SHARE
from avssl.data.windows import cut_into_windows, sliding_windows


def reference(wave: np.ndarray, size: int, hop: int) -> list[tuple[int, int]]:
    """(begin, end) in samples, straight from the rule's words."""
    spans = []
    for begin in range(0, len(wave), hop):
        end = min(begin + size, len(wave))
        inside = any(end <= before for _, before in spans)
        if not inside and (not spans or end - begin >= MIN_SHARE * size):
            spans.append((begin, end))
    return spans


def cut(wave: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    places = np.sort(rng.integers(0, len(wave) + 1, size=rng.integers(1, 20)))
    return np.split(wave, places)


def test_windows_are_those_of_the_rule_however_the_sound_is_cut() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, hop, length = rng.integers(1, 60), rng.integers(1, 90), rng.integers(1, 400)
        wave = rng.standard_normal(length).astype(np.float32)
        windows = list(sliding_windows(cut(wave, rng), 100, size / 100, hop / 100))
        spans = reference(wave, size, hop)
        assert [(round(w.start * 100), round(w.end * 100)) for w in windows] == spans
        for window, (begin, end) in zip(windows, spans, strict=True):
            np.testing.assert_array_equal(window.waveform, np.pad(wave[begin:end], (0, size - (end - begin))))


def test_a_window_is_given_as_soon_as_it_is_complete() -> None:
    taken = 0

    def blocks():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.ones(10, dtype=np.float32)

    windows = sliding_windows(blocks(), 100, 0.5, 0.2)
    next(windows)
    assert taken == 5
    next(windows)
    assert taken == 7


def test_nothing_gives_nothing_and_nonsense_is_refused() -> None:
    assert list(sliding_windows([], 100, 1.0)) == []
    for seconds, hop in ((0.0, None), (1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="positive"):
            list(sliding_windows([np.ones(5)], 100, seconds, hop))


def manifest(tmp_path, **columns) -> Manifest:
    rows = [
        {"clip_id": "long", "path": "a.wav", "duration": 10.0, "label.x": "k"},
        {"clip_id": "part", "path": "a.wav", "duration": 10.0, "start": 2.0, "end": 4.5},
        {"clip_id": "short", "path": "b.wav", "duration": 0.4},
        {"clip_id": "unknown", "path": "c.wav"},
    ]
    return Manifest.from_rows(rows, tmp_path, {"x": ["k"]})


def spans_of(windows: Manifest, index: np.ndarray) -> dict[int, list[tuple[float, float]]]:
    spans: dict[int, list[tuple[float, float]]] = {}
    for row, start, end in zip(index.tolist(), windows.column("start"), windows.column("end"), strict=True):
        spans.setdefault(row, []).append((round(start, 6), round(end, 6)))
    return spans


def test_rows_of_windows(tmp_path) -> None:
    whole = manifest(tmp_path)
    windows, index = cut_into_windows(whole, 1.0, modalities=["audio"])
    assert spans_of(windows, index) == {0: [(4.5, 5.5)], 1: [(2.75, 3.75)], 2: [(0.0, 0.4)]}
    assert windows.heads == {} and len(set(windows.column("clip_id"))) == 3
    windows, index = cut_into_windows(whole, 1.0, "uniform", modalities=["audio"], count=3)
    assert spans_of(windows, index) == {
        0: [(0.0, 1.0), (4.5, 5.5), (9.0, 10.0)],
        1: [(2.0, 3.0), (2.75, 3.75), (3.5, 4.5)],
        2: [(0.0, 0.4)],
    }
    windows, index = cut_into_windows(whole, 1.0, "all", modalities=["audio"])
    assert spans_of(windows, index)[1] == [(2.0, 3.0), (3.0, 4.0), (4.0, 4.5)]
    for options in ({"mode": "every"}, {"mode": "all", "hop": 0.0}, {"mode": "uniform", "count": 0}):
        with pytest.raises(ValueError):
            cut_into_windows(whole, 1.0, modalities=["audio"], **options)


@pytest.mark.parametrize(("seconds", "hop"), [(1.0, 1.0), (1.0, 0.3), (3.0, 0.7), (0.5, 2.0), (0.97, 0.97)])
def test_rows_of_windows_are_the_sliding_ones(seconds: float, hop: float, tmp_path) -> None:
    windows, index = cut_into_windows(manifest(tmp_path), seconds, "all", modalities=["audio"], hop=hop)
    slid = sliding_windows([np.zeros(100_000, dtype=np.float32)], 10_000, seconds, hop)
    expected = [(window.start, window.end) for window in slid]
    np.testing.assert_allclose(spans_of(windows, index)[0], expected, atol=1e-4)
