"""Mean and standard deviation of the log-mel spectrogram over a set: what the frontend normalizes by."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

import mast
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.media import Channel, MediaError
from avssl.data.media.pool import available_cores, run_all
from avssl.data.shards.sample import open_source
from avssl.data.spans import random_span
from avssl.progress import track


@dataclass(frozen=True)
class MelStats:
    """Statistics of log-mel values, each of a frame and a mel bin of a clip's real sound: no padding counts.

    Attributes:
        mean, std: Over all values; the standard deviation divides by their number.
        clips: Clips that were read.
        hours: Their length.
        failed: Clips that could not be read, or are shorter than one window.
        reasons: Reason -> how many.
        frontend: Settings of the frontend, without a normalization.
    """

    mean: float
    std: float
    clips: int
    hours: float
    failed: int
    reasons: dict[str, int] = field(default_factory=dict)
    frontend: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> str:
        """What to pass to pretrain and finetune."""
        rate, mels = self.frontend["sample_rate"], self.frontend["num_mels"]
        normalization = f"--audio.mean {self.mean:.4f} --audio.std {self.std:.4f}"
        return f"{normalization} --audio.sample_rate {rate} --audio.num_mels {mels}"

    def to_json(self) -> dict[str, Any]:
        """All of it, with the options."""
        return asdict(self) | {"options": self.options}


class _Job(NamedTuple):
    path: str
    start: float
    seconds: float
    row: int


class _Moments(NamedTuple):
    """Of a clip's log-mel values: their number, mean, sum of squared deviations; ``reason`` where it gave none."""

    values: int
    mean: float
    deviations: float
    reason: str = ""


def logmel_stats(
    manifest: Manifest,
    clip_length: float,
    *,
    sample_rate: int = 16000,
    num_mels: int = 128,
    channel: Channel = "mean",
    clips: int = 10_000,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> MelStats:
    """Mean and standard deviation of ``mast.LogMel`` (its other settings at their defaults) over clips of a set.

    Of each row one span of ``clip_length`` seconds is read, at random as in training, or all of a shorter one. The
    result depends on the rows and the seed, not on the number of workers.

    Args:
        manifest: scanned rows, those of the training split.
        clip_length: seconds.
        sample_rate, num_mels: of the frontend.
        channel: what is heard of several channels: "mean", or the number of one.
        clips: so many rows at most, drawn without replacement.
        seed: of the rows and the spans.
        workers, progress: as for :func:`avssl.data.scan.scan`.

    Raises:
        DataError: no row has sound, or none could be read.
        ValueError: a length or number that is not positive, or settings that the frontend does not take.
    """
    if clip_length <= 0 or clips < 1:
        raise ValueError(f"need clip_length > 0 s and clips >= 1, got {clip_length} and {clips}")
    frontend = mast.LogMel(sample_rate, num_mels, mean=None, std=None)
    manifest, _ = manifest.usable(audio=True, channel=channel)
    lows, highs = manifest.spans(["audio"])
    rows = np.flatnonzero(highs > lows)
    if not len(rows):
        raise DataError("no clip with sound to take statistics of: check the splits and the manifest's errors")
    rng = np.random.default_rng((seed, 11))
    rows = np.sort(rng.choice(rows, min(clips, len(rows)), replace=False))
    jobs = []
    for row in rows.tolist():
        clip = manifest.row(row)
        span = random_span(np.random.default_rng((seed, row)), float(lows[row]), float(highs[row]), clip_length)
        jobs.append(_Job(str(clip.path), span.start, span.available, row))
    moments: dict[int, _Moments] = {}
    found = run_all(
        partial(_moments, sample_rate, num_mels, channel),
        jobs,
        lambda job, reason: _Moments(0, 0.0, 0.0, reason),
        workers=available_cores() if workers is None else workers,
        chunk=8,
    )
    for job, result in track(found, "log-mel statistics", "clip", total=len(jobs), shown=progress):
        moments[job.row] = result
    return _merged([moments[row] for row in rows.tolist()], frontend.config, frontend.shift)


def _merged(moments: list[_Moments], frontend: Mapping[str, Any], shift: int) -> MelStats:
    """Pool the clips' moments, in the order of the rows (Chan, Golub & LeVeque 1979)."""
    reasons = Counter(clip.reason for clip in moments if clip.reason)
    good = [clip for clip in moments if not clip.reason]
    if not good:
        raise DataError(f"none of {len(moments)} clips could be read for the statistics: {dict(reasons.most_common())}")
    counts, means, deviations = (np.asarray(column, dtype=np.float64) for column in list(zip(*good, strict=True))[:3])
    mean = float(np.average(means, weights=counts))
    variance = float((deviations.sum() + (counts * (means - mean) ** 2).sum()) / counts.sum())
    hours = float(counts.sum() / frontend["num_mels"] * shift / frontend["sample_rate"] / 3600)
    return MelStats(
        mean, variance**0.5, len(good), hours, sum(reasons.values()), dict(reasons.most_common()), dict(frontend)
    )


@cache
def _frontend(sample_rate: int, num_mels: int) -> mast.LogMel:
    return mast.LogMel(sample_rate, num_mels, mean=None, std=None)


def _moments(sample_rate: int, num_mels: int, channel: Channel, job: _Job) -> _Moments:
    """Read one clip."""
    if multiprocessing.parent_process() is not None:  # a worker: there is one for each core
        torch.set_num_threads(1)
    frontend = _frontend(sample_rate, num_mels)
    try:
        with open_source(job.path) as source:
            waveform = source.audio(job.start, job.seconds, sample_rate, channel).waveform
    except MediaError as error:
        return _Moments(0, 0.0, 0.0, error.reason)
    if len(waveform) < frontend.window:
        return _Moments(0, 0.0, 0.0, "shorter than a window")
    values = frontend(torch.from_numpy(waveform)[None]).double()
    mean = values.mean()
    return _Moments(values.numel(), float(mean), float((values - mean).square().sum()))
