"""Audio-to-video and video-to-audio retrieval among the N clips of a set: clip i's sound belongs to clip i's frames."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_matrix, to_numpy, unit_rows
from avssl.evaluation.base import EvaluationResult, Headline, register_evaluation
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.plots import FAINT, RIGHT, WRONG, drawn, new_figure, save, shorten, styled
from avssl.evaluation.report import Section, Table
from avssl.evaluation.statistics import bootstrap_medians, proportion_interval

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext
    from avssl.models.pair import AudioVisualPair

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


@dataclass(frozen=True)
class RetrievalExample:
    """One row of the picture.

    Attributes:
        spectrogram: query's log-mel ``(F, T)``, low frequencies first.
        frames: best match first, each ``(H, W, 3)`` uint8.
        right: for each frame, whether it belongs to the query.
        title: name of the query.
        captions: a line under each frame (class and similarity, say); empty for none.
        rank: place of the right clip among all; None when not known.
    """

    spectrogram: Arrayish
    frames: Sequence[Arrayish]
    right: Sequence[bool]
    title: str = ""
    captions: Sequence[str] = ()
    rank: int | None = None


def _frame(values: Arrayish, row: int) -> np.ndarray:
    frame = to_numpy(values)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"queries[{row}].frames: expected (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    return frame


def retrieval_examples(
    path: str | os.PathLike[str],
    queries: Sequence[RetrievalExample],
    *,
    columns: int = 5,
    title: str = "Audio to video: query sound and the frames found for it",
) -> None:
    """One row for each query: its spectrogram, then its best ``columns`` frames, the right one framed in green with a
    tick, wrong ones in orange with a cross (shape tells them apart where colour does not).

    Raises:
        ValueError: no query, frames of another shape or type, or flags that do not match the frames.
    """
    if not queries:
        raise ValueError("queries: nothing to draw")
    columns = max(1, min(columns, max(len(query.frames) for query in queries)))
    with styled():
        figure = new_figure(max(6.5, 2.5 + 1.65 * columns), 1.95 * len(queries) + 0.6, title)
        grid = figure.add_gridspec(len(queries), columns + 1, width_ratios=[1.5] + [1] * columns)
        for row, query in enumerate(queries):
            if len(query.right) != len(query.frames):
                raise ValueError(f"queries[{row}]: {len(query.right)} flags for {len(query.frames)} frames")
            axes = figure.add_subplot(grid[row, 0])
            spectrogram = to_numpy(query.spectrogram)
            if spectrogram.ndim != 2:
                raise ValueError(f"queries[{row}].spectrogram: expected (F, T), got shape {spectrogram.shape}")
            axes.imshow(spectrogram, origin="lower", aspect="auto", cmap="magma", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(shorten(query.title, 26), fontsize=9)
            axes.set_xlabel("time" if query.rank is None else f"right clip at rank {query.rank}", fontsize=7.5)
            axes.set_ylabel("mel band", fontsize=7.5)
            for column in range(min(columns, len(query.frames))):
                axes = figure.add_subplot(grid[row, column + 1])
                axes.imshow(_frame(query.frames[column], row), interpolation="antialiased")
                axes.set(xticks=[], yticks=[])
                colour = RIGHT if query.right[column] else WRONG
                for spine in axes.spines.values():
                    spine.set(visible=True, color=colour, linewidth=3)
                mark = "✓" if query.right[column] else "✗"
                axes.set_title(f"{column + 1} {mark}", color=colour, fontsize=9, loc="center")
                if column < len(query.captions):
                    axes.set_xlabel(shorten(query.captions[column], 24), fontsize=7.5, color=FAINT)
        save(figure, path)


WAYS = {"audio_to_video": "audio to video", "video_to_audio": "video to audio"}
EXAMPLES, BEST = 6, 5  # queries of the picture, and videos of each
TEXT = (
    "Every clip's sound asks for its own video among all, and the other way round, by cosine similarity of the "
    "embeddings of one projection. Nothing was trained on these clips or fitted to them."
)


@register_evaluation("retrieval", needs=("pair",), default_for=("pair",))
def retrieval(context: "EvaluationContext") -> EvaluationResult:
    """R@1, R@5, R@10 and median rank both ways, with chance beside them, and examples to look at."""
    pair = context.model.pair
    assert pair is not None
    audio, video = context.joint
    metrics = retrieval_metrics(audio.features, video.features)
    metrics |= retrieval_intervals(audio.features, video.features, seed=context.config.seed)
    headlines = []
    for way, name in WAYS.items():
        key = f"{way}/R@1"
        bounds, chance = (metrics[f"{key}_low"], metrics[f"{key}_high"]), metrics["chance/R@1"]
        headlines.append(Headline(f"{name} R@1, {context.clips}", key, metrics[key], *bounds, chance=chance))
    note = f"Among {len(audio)} clips; embeddings: {context.clips}, projection {pair.retrieval}."
    table = retrieval_table(metrics, f"{note} In brackets 95 % intervals over queries.")
    path, caption = context.picture("retrieval"), "Audio queries and the clips whose video the pair finds for them"
    pictures = drawn(path, caption, _draw_examples, path, context, pair, audio, video)
    return EvaluationResult(Section("Zero-shot retrieval", TEXT, [table], pictures), metrics, headlines)


def retrieval_table(metrics: Mapping[str, float], note: str) -> Table:
    """Recall and median rank both ways, with their intervals where ``metrics`` has them, and chance."""

    def cell(key: str, form: str) -> str:
        value, low, high = (metrics.get(f"{key}{side}") for side in ("", "_low", "_high"))
        interval = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
        return f"{value:{form}}{interval}"

    rows: list[list[object]] = []
    for way, name in {**WAYS, "chance": "chance"}.items():
        recalls = [cell(f"{way}/R@{k}", ".1%") for k in (1, 5, 10)]
        rows.append([name, *recalls, cell(f"{way}/median_rank", "g")])
    return Table("Zero-shot retrieval", ["", "R@1", "R@5", "R@10", "median rank"], rows, note)


def _draw_examples(
    path: Path, context: "EvaluationContext", pair: "AudioVisualPair", audio: Embeddings, video: Embeddings
) -> None:
    """Audio queries, spread over the rows, with the videos nearest to each."""
    queries = np.linspace(0, len(audio) - 1, min(EXAMPLES, len(audio))).astype(int)
    found, _ = nearest(audio.features[queries], video.features, BEST)
    rows = sorted({int(video.index[i]) for i in [*queries, *found.flatten()]})
    shown = context.split.select(mask=np.isin(np.arange(len(context.split)), rows))
    clips: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for batch in context.pair_loaders.evaluate(shown):
        assert batch.audio is not None and batch.video is not None
        with torch.inference_mode():
            heard = batch.to(context.device)
            assert heard.audio is not None
            spectrograms = pair.frontend(heard.audio, heard.samples).cpu()
        for i, clip_id in enumerate(batch.clip_ids):
            middle = batch.video[i, :, batch.video.shape[2] // 2].permute(1, 2, 0)
            clips[clip_id] = (spectrograms[i, 0].numpy(), middle.numpy())
    examples = [
        RetrievalExample(
            spectrogram=clips[audio.clip_ids[query]][0],
            frames=[clips[video.clip_ids[i]][1] for i in best],
            right=[i == query for i in best],
            title=audio.clip_ids[query],
        )
        for query, best in zip(queries, found, strict=True)
    ]
    retrieval_examples(path, examples)
