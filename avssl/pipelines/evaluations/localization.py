"""localization: where in the picture a pair finds what is heard."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avssl.data.batch import Batch
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.places import Box, read_boxes
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.embeddings import Embeddings, embed_many
from avssl.evaluation.localization import (
    SIDE,
    best_iou,
    centre_heat,
    consensus_iou,
    hottest_half,
    localization_metrics,
    points_inside,
)
from avssl.evaluation.pictures import HeatExample, drawn, heat_maps
from avssl.evaluation.report import Section, Table
from avssl.models.pair import AudioVisualPair
from avssl.objectives.vectors import unit
from avssl.pipelines.evaluations.base import Finding, Headline, evaluation
from avssl.pipelines.evaluations.bench import Bench

EXAMPLES = 8
TEXT = (
    "The embedding of a clip's sound is compared, by cosine, with the projected features of each place of its picture. "
    "The hotter half of the map is taken for the source (cIoU@0.5, AUC; as EZ-VSL's evaluator does), its hottest pixel "
    "for where it points. A box that is much smaller or larger than half of the picture cannot be met by half of it: "
    "the best possible stands in the table."
)


@evaluation("localization", needs=("pair", "places"))
def localization(bench: Bench) -> Finding:
    """cIoU@0.5, AUC and pointing accuracy, beside the centre, another clip's sound and random weights.

    Raises:
        DataError: no clip has a box within what the encoder sees.
    """
    pair = bench.subject.pair
    assert pair is not None
    maps = _maps(bench, pair, "heat maps")
    random = _maps(bench, bench.subject.random_pair(bench.config.seed), "random weights, heat maps")
    rows, truths, outside = _truths(bench, pair, maps["own"])
    heats = {
        "this checkpoint": [_enlarged(maps["own"].features[row]) for row in rows],
        "with another clip's sound": [_enlarged(maps["other"].features[row]) for row in rows],
        "random weights": [_enlarged(random["own"].features[row]) for row in rows],
        "the centre": [centre_heat()] * len(rows),
    }
    keys = dict(zip(heats, ("", "other_sound/", "random/", "centre/"), strict=True))
    metrics: dict[str, float] = {}
    table: list[list[object]] = []
    for name, found in heats.items():
        ious = np.array([consensus_iou(hottest_half(heat), truth) for heat, truth in zip(found, truths, strict=True)])
        hits = np.array([points_inside(heat, truth) for heat, truth in zip(found, truths, strict=True)])
        numbers = localization_metrics(ious, hits, bench.config.seed)
        metrics |= {f"localization/{keys[name]}{key}": value for key, value in numbers.items()}
        table.append([name, *(_with_interval(numbers, key) for key in ("cIoU@0.5", "AUC", "cIoU", "pointing"))])
    best = np.array([best_iou(truth) for truth in truths])
    ceiling = localization_metrics(best, np.ones(len(best), dtype=bool), bench.config.seed)
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
        headlines.append(Headline(f"localization {name}, {bench.protocol.words('maps')}", key, metrics[key], low, high))
    path = bench.picture("localization")
    caption = "Heat maps of clips evenly spread over the split; the white line is the truth"
    shown = drawn(path, caption, _draw, path, bench, pair, maps["own"], rows, heats["this checkpoint"], truths)
    section = Section("Localization", TEXT, [Table("Localization", columns, table, note)], shown)
    return Finding(section, metrics, headlines)


def _with_interval(numbers: Mapping[str, float], key: str) -> str:
    return f"{numbers[key]:.1%} ({numbers[f'{key}_low']:.1%} to {numbers[f'{key}_high']:.1%})"


def _maps(bench: Bench, pair: AudioVisualPair, what: str) -> dict[str, Embeddings]:
    """Heat maps (N, H' * W') of the rows: "own" with their sound, "other" with that of the row before."""
    clips = bench.protocol.eval_clips
    before: deque[Tensor] = deque(maxlen=clips)

    def encode(batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(bench.fabric.device)
        assert batch.audio is not None and batch.video is not None
        sounds, places = unit(pair.embed_audio(batch.audio, batch.samples)), unit(pair.embed_places(batch.video))
        if not before:  # the first rows hear the last of their batch
            before.extend(sounds[-clips:])
        others = torch.stack([*before, *sounds])[: len(sounds)]
        before.extend(sounds)
        return {"own": heat(places, sounds), "other": heat(places, others)}

    with bench.fabric.autocast():
        return embed_many(encode, bench.pair_loaders.evaluate(bench.split), description=what)


def heat(places: Tensor, sounds: Tensor) -> Tensor:
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


def _truths(bench: Bench, pair: AudioVisualPair, found: Embeddings) -> tuple[list[int], list[NDArray[np.bool_]], int]:
    """Which rows of ``found`` have a box in what the encoder sees, its masks, and how many have not."""
    split: Manifest = bench.split
    boxes, widths, heights = read_boxes(split), split.column("width"), split.column("height")
    square = int(pair.settings["crop_size"]) / int(bench.config.data.frame_size or pair.settings["crop_size"])
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
    bench: Bench,
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
    for batch in bench.pair_loaders.evaluate(bench.split.select(mask=np.isin(np.arange(len(bench.split)), wanted))):
        assert batch.video is not None
        for clip_id, clip in zip(batch.clip_ids, batch.video, strict=True):
            top, left = ((side - crop) // 2 for side in clip.shape[-2:])
            middle = clip[:, clip.shape[1] // 2, top : top + crop, left : left + crop]
            frames[clip_id] = middle.permute(1, 2, 0).cpu().numpy()
    examples = []
    for number in chosen:
        name, heat, truth = found.clip_ids[rows[number]], heats[number], truths[number]
        iou, hit = consensus_iou(hottest_half(heat), truth), points_inside(heat, truth)
        caption = f"IoU {iou:.2f}, points {'inside' if hit else 'outside'}"
        examples.append(HeatExample(frames[name], heat, truth, name, caption))
    heat_maps(path, examples)
