"""What contrastive training does to an embedding space, in a few numbers: is it collapsing, is it spread out?"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Pairs and spectra grow with the square and the cube of the rows; on so many all these numbers have long settled.
MAX_ROWS = 2048


@torch.no_grad()
def alignment(audio: Tensor, video: Tensor) -> Tensor:
    """Mean squared distance of the pairs' L2-normalized embeddings (L_align of Wang & Isola 2020, alpha = 2).

    0 where every pair is one point, 2 where pairs are orthogonal, 4 where they are opposite.

    Args:
        audio: (N, D).
        video: (N, D); row i belongs to ``audio[i]``.
    """
    if audio.shape != video.shape:
        raise ValueError(f"alignment: needs pairs, got {tuple(audio.shape)} and {tuple(video.shape)}")
    return (_unit(audio) - _unit(video)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(rows: Tensor) -> Tensor:
    """log of the mean of exp(-2 |x - y|^2) over all pairs of L2-normalized rows (L_uniform, ibid., t = 2).

    From 0, where all rows are one point, down to about -4 on a uniform sphere of many dimensions. A single row has no
    pair and counts as one point.

    Args:
        rows: (N, D).
    """
    rows = _unit(rows)
    if len(rows) < 2:
        return rows.new_zeros(())
    squared = F.pdist(rows).square()
    return torch.logsumexp(-2 * squared, dim=0) - math.log(len(squared))


@torch.no_grad()
def effective_rank(rows: Tensor) -> Tensor:
    """Effective rank: exp of the entropy of the normalized singular values (Roy & Vetterli 2007).

    The rows are not centred, as in RankMe (Garrido et al. 2023): embeddings that are nearly one vector then have
    a rank near 1. Centring would leave their noise alone, whose rank is high. Between 1 and min(N, D); 0 where all is
    0; NaN where a value is not finite.

    Args:
        rows: (N, D).
    """
    if not torch.isfinite(rows).all():
        return rows.new_full((), math.nan, dtype=torch.float32)
    # Squaring halves the digits: the Gram matrix in float64 gives singular values as good as float32's own. MPS has no
    # float64.
    exact = (rows.cpu() if rows.device.type == "mps" else rows).double()
    gram = exact @ exact.T if len(exact) < exact.shape[1] else exact.T @ exact
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    rank = (-torch.special.xlogy(share, share).sum()).exp() * (singular.sum() > 0)
    return rank.to(rows.device, torch.float32)


@torch.no_grad()
def mean_cosine(rows: Tensor) -> Tensor:
    """Mean cosine of all pairs of rows: near 1 where all have a large part in common, about 0 where they have none.

    Contrast behind a projection with batch norms lets features drift there, which a linear probe does not mind, but
    fine-tuning does (:mod:`avssl.training.standardize`). A single row has no pair and counts as alike, 1.

    Args:
        rows: (N, D).
    """
    count, total = len(rows), _unit(rows).sum(dim=0).square().sum()
    return (total - count) / (count * (count - 1)) if count > 1 else rows.new_ones((), dtype=torch.float32)


def diagnose(
    audio: Tensor | None = None,
    video: Tensor | None = None,
    audio_features: Tensor | None = None,
    video_features: Tensor | None = None,
) -> dict[str, Tensor]:
    """The numbers of one set of clips by name, as far as what is given allows.

    Joint embeddings count by direction alone, which is what objectives compare; features as they are, which is what a
    classifier gets. Of more than ``MAX_ROWS`` rows, as many are taken, evenly spread.

    Args:
        audio: (N, D) joint embeddings.
        video: (N, D) joint embeddings of the same clips.
        audio_features: (N, A).
        video_features: (N, V).
    """
    report: dict[str, Tensor] = {}
    if audio is not None and video is not None:
        report["alignment"] = alignment(_some(audio), _some(video))
    for name, rows in (("audio", audio), ("video", video)):
        if rows is not None:
            joint = _unit(_some(rows))
            report |= {f"{name}_uniformity": uniformity(joint), f"{name}_rank": effective_rank(joint)}
    for name, rows in (("audio", audio_features), ("video", video_features)):
        if rows is not None:
            report[f"{name}_feature_rank"] = effective_rank(_some(rows))
            report[f"{name}_feature_cosine"] = mean_cosine(_some(rows))
    return report


def _some(rows: Tensor) -> Tensor:
    rows = rows.detach()
    if len(rows) <= MAX_ROWS:
        return rows
    return rows[torch.arange(MAX_ROWS, device=rows.device) * len(rows) // MAX_ROWS]


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1)


# Ranks of the joint embeddings, which are what objectives pull together; features may have a strong mean and be fine.
RANKS = ("train/diagnostics/audio_rank", "train/diagnostics/video_rank")


class CollapseMonitor:
    """Says once that an effective rank, averaged over the last logged rows, is below a bound.

    Args:
        bound: Smallest effective rank of a sound embedding; a collapsed one has 1. 0 never tells.
        after: Steps that are not looked at: before the end of the warm-up a low rank is no sign.
        window: Rows that are averaged, and the fewest on which a verdict rests.

    Raises:
        ValueError: for a negative bound.
    """

    def __init__(self, bound: float, after: int = 0, window: int = 5) -> None:
        if not bound >= 0:
            raise ValueError(f"collapse_rank: must be at least 0, got {bound}")
        self.bound, self.after, self.warned = bound, after, False
        self._last: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))

    def see(self, row: Mapping[str, Any], step: int) -> str | None:
        """Takes in a logged row; returns the message where it is due."""
        if self.warned or step <= self.after:
            return None
        for name in RANKS:
            if name not in row or not math.isfinite(row[name]):
                continue
            ranks = self._last[name]
            ranks.append(row[name])
            mean = sum(ranks) / len(ranks)
            if len(ranks) == ranks.maxlen and mean < self.bound:
                self.warned = True
                return (
                    f"step {step}: the embedding is collapsing: {name} was {mean:.2f} on average over the last "
                    f"{len(ranks)} rows, below collapse_rank {self.bound:g}. Lower optim.lr, raise optim.batch_size "
                    "or add an objective that spreads embeddings out"
                )
        return None
