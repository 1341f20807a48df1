"""Audio-to-video and video-to-audio retrieval among the N clips of a set: clip i's sound belongs to clip i's frames."""

from collections.abc import Sequence

import numpy as np

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_matrix, unit_rows
from avssl.evaluation.intervals import bootstrap_medians, proportion_interval

# Cosine similarities closer than this are equal: float32 features do not tell them apart.
TIE = 1e-7


def _cosine_rows(values: Arrayish, name: str) -> FloatArray:
    return unit_rows(as_matrix(values, name).astype(np.float64))


def _pair(audio: Arrayish, video: Arrayish) -> tuple[FloatArray, FloatArray]:
    left, right = _cosine_rows(audio, "audio"), _cosine_rows(video, "video")
    if left.shape != right.shape:
        raise ValueError(f"audio {left.shape} and video {right.shape} must have one shape: row i of both is clip i")
    return left, right


def _standing(queries: FloatArray, gallery: FloatArray, chunk: int) -> tuple[IntArray, IntArray]:
    """For each query: how many gallery rows are more similar than its own, and how many others just as similar."""
    above, ties = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    for start in range(0, len(queries), chunk):
        stop = min(start + chunk, len(queries))
        similarity = queries[start:stop] @ gallery.T
        own = similarity[np.arange(stop - start), np.arange(start, stop)][:, None]
        above[start:stop] = (similarity > own + TIE).sum(axis=1)
        ties[start:stop] = (np.abs(similarity - own) <= TIE).sum(axis=1) - 1
    return above, ties


def retrieval_metrics(
    audio: Arrayish, video: Arrayish, ks: Sequence[int] = (1, 5, 10), *, chunk: int = 1024
) -> dict[str, float]:
    """Recall at k and median rank by cosine similarity, both ways, with chance beside them.

    Ties are broken at random, in expectation: with ``a`` rows above the right one and ``t`` others equal to it, the
    right one is among the first k with probability ``clip((k - a) / (t + 1), 0, 1)``, and its rank is
    ``1 + a + t / 2``. An encoder that gives one constant vector therefore scores exactly chance.

    Args:
        audio, video: ``(N, D)``, row i of both from the same clip; lengths do not matter.
        ks: ranks to report.
        chunk: queries at a time; memory is chunk x N float64.

    Returns:
        ``audio_to_video/R@k`` and ``video_to_audio/R@k`` (0..1), ``.../median_rank`` (1 is best), ``chance/R@k``,
        ``chance/median_rank``, ``count``.
    """
    left, right = _pair(audio, video)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks: ranks start at 1, got {tuple(ks)}")
    count = len(left)
    metrics: dict[str, float] = {}
    for name, queries, gallery in (("audio_to_video", left, right), ("video_to_audio", right, left)):
        above, ties = _standing(queries, gallery, chunk)
        for k in ks:
            metrics[f"{name}/R@{k}"] = float(np.clip((k - above) / (ties + 1), 0, 1).mean())
        metrics[f"{name}/median_rank"] = float(np.median(1 + above + ties / 2))
    metrics |= {f"chance/R@{k}": min(1.0, k / count) for k in ks}
    return metrics | {"chance/median_rank": (count + 1) / 2, "count": float(count)}


def retrieval_intervals(
    audio: Arrayish, video: Arrayish, ks: Sequence[int] = (1, 5, 10), *, seed: int = 0, chunk: int = 1024
) -> dict[str, float]:
    """95 % intervals of :func:`retrieval_metrics` over other queries among the same N clips.

    Wilson's of R@k, a bootstrap of the median rank. They say how much another set of queries would change a number, not
    what a larger or smaller gallery would.

    Returns:
        ``.../R@k_low``, ``.../R@k_high``, ``.../median_rank_low`` and ``.../median_rank_high`` both ways.
    """
    left, right = _pair(audio, video)
    bounds: dict[str, float] = {}
    for name, queries, gallery in (("audio_to_video", left, right), ("video_to_audio", right, left)):
        above, ties = _standing(queries, gallery, chunk)
        found = {k: float(np.clip((k - above) / (ties + 1), 0, 1).sum()) for k in ks}
        spans = {f"R@{k}": proportion_interval(hits, len(queries)) for k, hits in found.items()}
        spans["median_rank"] = bootstrap_medians(1 + above + ties / 2, seed=seed)
        for metric, (low, high) in spans.items():
            bounds |= {f"{name}/{metric}_low": low, f"{name}/{metric}_high": high}
    return bounds


def nearest(queries: Arrayish, gallery: Arrayish, k: int = 5, *, chunk: int = 1024) -> tuple[IntArray, FloatArray]:
    """The k gallery rows most similar to each query, best first, for pictures and for search.

    Args:
        queries: ``(Q, D)``. gallery: ``(N, D)``. k: at most N are given.

    Returns:
        Gallery rows ``(Q, k)`` int64 and their cosine similarities ``(Q, k)``; ties go to the lower row.
    """
    left, right = _cosine_rows(queries, "queries"), _cosine_rows(gallery, "gallery")
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"queries have {left.shape[1]} columns, gallery {right.shape[1]}")
    rows, values = [], []
    for start in range(0, len(left), chunk):
        similarity = left[start : start + chunk] @ right.T
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        rows.append(best)
        values.append(np.take_along_axis(similarity, best, axis=1))
    return np.concatenate(rows), np.concatenate(values)
