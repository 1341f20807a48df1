"""Localization of what sounds: consensus IoU, its area under the curve, and pointing accuracy."""

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.intervals import bootstrap, proportion_interval

SIDE = 224  # pixels of a heat map that is judged
# Shares of the clips are counted at these IoUs for the area under the curve.
THRESHOLDS = np.arange(21) / 20
_SLACK = 1e-9  # an IoU of exactly a threshold reaches it


def hottest_half(heat: FloatArray) -> NDArray[np.bool_]:
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
        "AUC": lambda rows: trapezoid(counted[:, rows].mean(axis=2), THRESHOLDS, axis=0),
        "cIoU": lambda rows: ious[rows].mean(axis=1),
    }
    for name, statistic in curves.items():
        low, high = bootstrap(statistic, len(ious), seed=seed)
        value = success_area(ious) if name == "AUC" else float(ious.mean())
        metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics


def centre_heat(side: int = SIDE) -> FloatArray:
    """(side, side): hottest in the middle, colder with the distance from it."""
    axis = np.arange(side) - (side - 1) / 2
    return np.asarray(-np.hypot(axis[:, None], axis[None, :]))
