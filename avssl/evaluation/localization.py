"""Localization of what sounds: consensus IoU, its area under the curve, pointing accuracy, and heat maps to look at."""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from torch import Tensor

from avssl.data.batch import Batch
from avssl.data.boxes import Box, read_boxes
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.base import EvaluationResult, Headline, register_evaluation
from avssl.evaluation.embeddings import Embeddings, embed_many
from avssl.evaluation.plots import bare, drawn, new_figure, save, shorten, styled
from avssl.evaluation.report import Section, Table
from avssl.evaluation.statistics import bootstrap, proportion_interval
from avssl.models.pair import AudioVisualPair
from avssl.objectives.functional import unit

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

SIDE = 224  # pixels of a heat map that is judged
# Shares of the clips are counted at these IoUs for the area under the curve.
THRESHOLDS = np.arange(21) / 20
_SLACK = 1e-9  # an IoU of exactly a threshold reaches it


def top_half(heat: FloatArray) -> NDArray[np.bool_]:
    """What a heat map ``(H, W)`` takes for the source: its pixels from the median up.

    As EZ-VSL's evaluation has it (Mo and Morgado 2022): ties with the median count, so that a flat map takes all.
    """
    values = np.sort(heat, axis=None)
    return np.asarray(heat >= values[len(values) // 2])


def consensus_iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Consensus intersection over union (Senocak et al. 2018, eq. 8) of two ``(H, W)`` masks.

    With a truth of one annotator it is the plain intersection over union.

    Raises:
        ValueError: the truth is empty.
    """
    if not truth.any():
        raise ValueError("the box lies wholly outside of what is seen")
    return float((found & truth).sum() / (truth.sum() + (found & ~truth).sum()))


def points_inside(heat: FloatArray, truth: NDArray[np.bool_]) -> bool:
    """Pointing game (Zhang et al. 2018): whether the hottest pixel lies in the truth; of several, the first."""
    return bool(truth.flat[int(np.argmax(heat))])


def best_iou(truth: NDArray[np.bool_]) -> float:
    """The highest consensus IoU that half of the pixels can reach."""
    inside, half = int(truth.sum()), truth.size - truth.size // 2
    return min(inside, half) / max(inside, half)


def success_area(ious: FloatArray) -> float:
    """Area under the share of clips that reach an IoU, over the IoU from 0 to 1 in steps of 0.05, by trapezoids."""
    return float(trapezoid([(ious >= threshold - _SLACK).mean() for threshold in THRESHOLDS], THRESHOLDS))


def localization_metrics(ious: FloatArray, hits: NDArray[np.bool_], seed: int = 0) -> dict[str, float]:
    """``cIoU@0.5`` (the share of clips that reach it), ``AUC``, mean ``cIoU`` and ``pointing``, with 95 % intervals.

    Args:
        ious: (N,) consensus IoU of each clip.
        hits: (N,) whether the hottest pixel lies in the truth.
        seed: Of the bootstrap over clips.
    """
    reached = ious >= 0.5 - _SLACK
    metrics: dict[str, float] = {}
    for name, share in (("cIoU@0.5", reached), ("pointing", hits)):
        low, high = proportion_interval(float(share.sum()), len(share))
        metrics |= {name: float(share.mean()), f"{name}_low": low, f"{name}_high": high}
    counted = (ious[None] >= THRESHOLDS[:, None] - _SLACK).astype(np.float64)  # (21, N)
    curves = {
        "AUC": lambda rows: trapezoid(counted[:, rows].mean(axis=-1), THRESHOLDS, axis=0),
        "cIoU": lambda rows: ious[rows].mean(axis=-1),
    }
    for name, statistic in curves.items():
        low, high = bootstrap(statistic, len(ious), seed=seed)
        value = success_area(ious) if name == "AUC" else float(ious.mean())
        metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics


def centre_map(side: int = SIDE) -> FloatArray:
    """(side, side): hottest in the middle, colder with the distance from it."""
    axis = np.arange(side) - (side - 1) / 2
    return np.asarray(-np.hypot(axis[:, None], axis[None, :]))


COLUMNS = 4


@dataclass(frozen=True)
class HeatExample:
    """One clip of the picture.

    Attributes:
        frame: (H, W, 3) uint8.
        heat: (S, S) over the same square, of any scale.
        truth: (S, S) where the source is.
        title: name of the clip.
        caption: a line under it.
    """

    frame: NDArray[np.uint8]
    heat: FloatArray
    truth: NDArray[np.bool_]
    title: str
    caption: str = ""


def heat_maps(
    path: str | os.PathLike[str], examples: Sequence[HeatExample], *, title: str = "Where the sound is found"
) -> None:
    """The frames under their heat maps; a white line surrounds the truth.

    Raises:
        ValueError: no example.
    """
    if not examples:
        raise ValueError("examples: nothing to draw")
    rows = -(-len(examples) // COLUMNS)
    with styled():
        figure = new_figure(2.1 * COLUMNS, 2.5 * rows + 0.5, title)
        grid = figure.add_gridspec(rows, COLUMNS)
        for number, example in enumerate(examples):
            axes = figure.add_subplot(grid[number // COLUMNS, number % COLUMNS])
            side = len(example.heat)
            square = (0.0, float(side), float(side), 0.0)
            axes.imshow(example.frame, extent=square, interpolation="nearest")
            axes.imshow(example.heat, extent=square, cmap="inferno", alpha=0.55)
            if not example.truth.all():  # a line needs an outside
                centres = np.arange(side) + 0.5
                axes.contour(centres, centres, example.truth, levels=[0.5], colors="white", linewidths=1.5)
            bare(axes)
            axes.set_title(shorten(example.title), fontsize=8)
            axes.set_xlabel(shorten(example.caption, 34), fontsize=7.5)
        save(figure, path)


EXAMPLES = 8
TEXT = (
    "The embedding of a clip's sound is compared, by cosine, with the projected features of each place of its picture. "
    "The hotter half of the map is taken for the source (cIoU@0.5, AUC; as EZ-VSL's evaluator does), its hottest pixel "
    "for where it points. A box that is much smaller or larger than half of the picture cannot be met by half of it: "
    "the best possible stands in the table."
)


@register_evaluation("localization", needs=("pair", "boxes"))
def localization(context: "EvaluationContext") -> EvaluationResult:
    """cIoU@0.5, AUC and pointing accuracy, beside the centre, another clip's sound and random weights.

    Raises:
        DataError: no clip has a box within what the encoder sees.
    """
    pair = context.model.pair
    assert pair is not None
    maps = _maps(context, pair, "heat maps")
    random = _maps(context, _random_pair(context), "random weights, heat maps")
    rows, truths, outside = _truths(context, pair, maps["own"])
    heats = {
        "this checkpoint": [_enlarged(maps["own"].features[row]) for row in rows],
        "with another clip's sound": [_enlarged(maps["other"].features[row]) for row in rows],
        "random weights": [_enlarged(random["own"].features[row]) for row in rows],
        "the centre": [centre_map()] * len(rows),
    }
    keys = dict(zip(heats, ("", "other_sound/", "random/", "centre/"), strict=True))
    metrics: dict[str, float] = {}
    table: list[list[object]] = []
    for name, found in heats.items():
        ious = np.array([consensus_iou(top_half(heat), truth) for heat, truth in zip(found, truths, strict=True)])
        hits = np.array([points_inside(heat, truth) for heat, truth in zip(found, truths, strict=True)])
        numbers = localization_metrics(ious, hits, context.config.seed)
        metrics |= {f"localization/{keys[name]}{key}": value for key, value in numbers.items()}
        table.append([name, *(_with_interval(numbers, key) for key in ("cIoU@0.5", "AUC", "cIoU", "pointing"))])
    best = np.array([best_iou(truth) for truth in truths])
    ceiling = localization_metrics(best, np.ones(len(best), dtype=bool), context.config.seed)
    area = float(np.mean([truth.mean() for truth in truths]))
    metrics |= {f"localization/best/{key}": ceiling[key] for key in ("cIoU@0.5", "AUC", "cIoU")}
    metrics |= {"localization/count": float(len(rows)), "localization/box_area": area}
    table.append(["best possible", *(f"{ceiling[key]:.1%}" for key in ("cIoU@0.5", "AUC", "cIoU")), None])
    left_out = f"; {outside} without a box, or with one outside of the crop, are left out" if outside else ""
    note = f"{len(rows)} clips{left_out}."
    note += f" The boxes cover {area:.0%} of what is seen: so often a random point hits. In brackets 95 % intervals."
    columns = ["", "cIoU@0.5", "AUC", "mean cIoU", "pointing"]
    headlines = []
    for name in ("cIoU@0.5", "AUC", "pointing"):
        key = f"localization/{name}"
        low, high = metrics[f"{key}_low"], metrics[f"{key}_high"]
        headlines.append(
            Headline(f"localization {name}, {context.protocol.words('maps')}", key, metrics[key], low, high)
        )
    path = context.picture("localization")
    caption = "Heat maps of clips evenly spread over the split; the white line is the truth"
    shown = drawn(path, caption, _draw, path, context, pair, maps["own"], rows, heats["this checkpoint"], truths)
    section = Section("Localization", TEXT, [Table("Localization", columns, table, note)], shown)
    return EvaluationResult(section, metrics, headlines)


def _random_pair(context: "EvaluationContext") -> AudioVisualPair:
    pair = context.model.reinitialized(context.config.seed).pair
    assert pair is not None
    return pair


def _with_interval(numbers: Mapping[str, float], key: str) -> str:
    return f"{numbers[key]:.1%} ({numbers[f'{key}_low']:.1%} to {numbers[f'{key}_high']:.1%})"


def _maps(context: "EvaluationContext", pair: AudioVisualPair, what: str) -> dict[str, Embeddings]:
    """Heat maps (N, H' * W') of the rows: "own" with their sound, "other" with that of the row before."""
    clips = context.protocol.eval_clips
    before: deque[Tensor] = deque(maxlen=clips)

    def encode(batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(context.device)
        assert batch.audio is not None and batch.video is not None
        sounds, places = unit(pair.embed_audio(batch.audio, batch.samples)), unit(pair.embed_locations(batch.video))
        if not before:  # the first rows hear the last of their batch
            before.extend(sounds[-clips:])
        others = torch.stack([*before, *sounds])[: len(sounds)]
        before.extend(sounds)
        return {"own": similarity_map(places, sounds), "other": similarity_map(places, others)}

    with context.autocast():
        return embed_many(encode, context.pair_loaders.evaluate(context.split), description=what)


def similarity_map(places: Tensor, sounds: Tensor) -> Tensor:
    """Cosines (B, H' * W') of unit embeddings: places (B, H', W', D) and sounds (B, D).

    Mixed precision would round them to about 3 digits, and places that differ would tie.
    """
    with torch.autocast(places.device.type, enabled=False):
        return torch.einsum("bhwd,bd->bhw", places, sounds).flatten(1)


def _enlarged(heat: FloatArray) -> FloatArray:
    """A map (H' * W',) of a square picture -> (SIDE, SIDE), bilinear between the centres of its cells."""
    cells = round(len(heat) ** 0.5)
    grid = torch.from_numpy(heat).view(1, 1, cells, cells).double()
    return np.asarray(F.interpolate(grid, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0])


def _truths(
    context: "EvaluationContext", pair: AudioVisualPair, found: Embeddings
) -> tuple[list[int], list[NDArray[np.bool_]], int]:
    """Which rows of ``found`` have a box in what the encoder sees, its masks, and how many have not."""
    split: Manifest = context.split
    boxes, widths, heights = read_boxes(split), split.column("width"), split.column("height")
    square = int(pair.settings["crop_size"]) / int(context.config.data.frame_size or pair.settings["crop_size"])
    rows: list[int] = []
    truths: list[NDArray[np.bool_]] = []
    for row, index in enumerate(found.index.tolist()):
        box: Box | None = boxes[index]
        if box is None or not widths[index] or not heights[index]:
            continue
        mask = box.mask(heights[index], widths[index], square, SIDE)
        if mask.any():
            rows.append(row)
            truths.append(mask)
    if not rows:
        raise DataError("localization: no clip has a box in what the encoder sees of its picture")
    return rows, truths, len(found) - len(rows)


def _draw(
    path: Path,
    context: "EvaluationContext",
    pair: AudioVisualPair,
    found: Embeddings,
    rows: list[int],
    heats: list[FloatArray],
    truths: list[NDArray[np.bool_]],
) -> None:
    """Examples evenly spread over the rows, with the middle frame of one of their clips."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int))
    wanted = [int(found.index[rows[number]]) for number in chosen]
    frames: dict[str, NDArray[np.uint8]] = {}
    crop = int(pair.settings["crop_size"])
    for batch in context.pair_loaders.evaluate(
        context.split.select(mask=np.isin(np.arange(len(context.split)), wanted))
    ):
        assert batch.video is not None
        for clip_id, clip in zip(batch.clip_ids, batch.video, strict=True):
            top, left = ((side - crop) // 2 for side in clip.shape[-2:])
            middle = clip[:, clip.shape[1] // 2, top : top + crop, left : left + crop]
            frames[clip_id] = middle.permute(1, 2, 0).cpu().numpy()
    examples = []
    for number in chosen:
        name, heat, truth = found.clip_ids[rows[number]], heats[number], truths[number]
        iou, hit = consensus_iou(top_half(heat), truth), points_inside(heat, truth)
        caption = f"IoU {iou:.2f}, points {'inside' if hit else 'outside'}"
        examples.append(HeatExample(frames[name], heat, truth, name, caption))
    heat_maps(path, examples)
