"""Looking at every file of a manifest once, before a run stumbles over the bad ones."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avssl.data.journal import Journal, file_key
from avssl.data.manifest import Manifest
from avssl.data.manifest_checks import FILE_COLUMNS
from avssl.data.media.audio import cancels
from avssl.data.media.errors import MediaError
from avssl.data.media.pool import available_cores, probe_all
from avssl.data.media.probe import CANCELS, MediaInfo, probe
from avssl.data.scan_report import report_lines, scan_report
from avssl.limits import limits
from avssl.progress import Meter, track

logger = logging.getLogger(__name__)

# Part of the name of every scan that is kept: raise it when a scan finds out more, or otherwise, than it used to.
SCAN_VERSION = 5
_SPANS = ("duration", "audio_start", "audio_end", "video_start", "video_end")
_NUMBERS = (*_SPANS, "sample_rate", "channels", "fps", "width", "height", *FILE_COLUMNS)
_FLAGS = ("has_audio", "has_video")
_REASONS = ("error", "warning", "audio_error", "video_error")
_TOLD = [item.name for item in fields(MediaInfo) if item.name != "path"]
# A scan that is not deep decodes the first seconds of so many files, since opposite channels tend to be of a whole set.
_LISTENED, _LISTENED_SECONDS = 32, 5.0
# What the state of the process decides rather than the file is found out anew by a scan that continues.
_PASSING = {"decoder hung", "decoder crashed", "unreadable file"}


@dataclass(frozen=True)
class FileFacts:
    """What a scan found out about F files, and which of them each of N rows is of.

    Columns rather than objects: a million files take 80 MB.

    Attributes:
        rows: (N,) int64, the file of each row of the manifest.
        numbers: name -> (F,) float64, NaN where unknown; seconds, Hz, frames per second, pixels, bytes, microseconds.
            ``duration`` is the largest end of a file's streams.
        flags: "has_audio", "has_video" -> (F,) bool.
        reasons: "error", "warning", "audio_error", "video_error" -> (F,) int32, indices into ``vocabulary``.
        vocabulary: reasons, "" first: nothing wrong.
    """

    rows: np.ndarray
    numbers: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    reasons: dict[str, np.ndarray]
    vocabulary: list[str]

    def reason(self, name: str) -> np.ndarray:
        """(N,) object: the reason of each row."""
        return np.asarray(self.vocabulary, dtype=object)[self.reasons[name][self.rows]]


def scan(
    manifest: Manifest,
    workers: int | None = None,
    progress: bool = True,
    deep: bool | None = None,
    journal: str | Path | None = None,
) -> Manifest:
    """Probe each file once and fill the manifest's columns; a file that cannot be used gets its reason in ``error``.

    ``duration`` becomes the end of the file, ``audio_start`` to ``video_end`` those of its streams. A segment that
    starts after its file ends gets the error "segment outside file"; `Manifest.reasons` tells which are outside of a
    stream that is needed. One that only ends after it stays, and is counted by `scan_report`.

    Args:
        manifest: the clips; several may share a file.
        workers: processes (a crash or a hang costs one file); None = one per available core, 0 = none, in this process.
        progress: show files/s and the time left.
        deep: as for `avssl.data.media.probe`: True decodes a bit of each stream, None only if its header is suspicious.
            Whether channels cancel is found out of every file with True, else of 32 that are spread over all.
        journal: file that keeps results as they come, so that a killed scan continues; removed when the scan is done.

    Returns:
        A manifest of the same clips in the same order.
    """
    with Journal(journal, scan_rules(deep)) as kept:
        result = fill(manifest, scan_files(manifest, workers, progress, deep, kept))
        kept.remove()
    for line in report_lines(scan_report(result)):
        logger.info("%s", line)
    return result


def scan_rules(deep: bool | None) -> str:
    """What decides a scan's findings beside the files, as the version of its journal."""
    return f"scan {SCAN_VERSION} deep={deep} pixels={limits().max_pixels}"


def scan_files(
    manifest: Manifest, workers: int | None, progress: bool, deep: bool | None, journal: Journal
) -> FileFacts:
    """The facts of every file of the manifest; arguments as for :func:`scan`."""
    paths = manifest.table["path"].combine_chunks().dictionary_encode()
    names = paths.dictionary.to_pylist()
    # In order, each once: not as Path, to which a.wav and ./a.wav are one file while they are two names here.
    files = {os.path.join(manifest.root, name): index for index, name in enumerate(names)}
    facts = FileFacts(
        np.asarray(paths.indices, dtype=np.int64),
        {name: np.full(len(names), np.nan) for name in _NUMBERS},
        {name: np.zeros(len(names), dtype=bool) for name in _FLAGS},
        {name: np.zeros(len(names), dtype=np.int32) for name in _REASONS},
        [""],
    )
    codes = {"": 0}

    def keep(info: MediaInfo) -> None:
        index = files[info.path]
        for name, column in facts.numbers.items():
            value = getattr(info, name)
            column[index] = np.nan if value is None else value
        for name, flag in facts.flags.items():
            flag[index] = getattr(info, name)
        for name, reason in facts.reasons.items():
            text = getattr(info, name)
            if text not in codes:
                codes[text] = len(codes)
                facts.vocabulary.append(text)
            reason[index] = codes[text]

    places = np.linspace(0, len(files) - 1, min(_LISTENED, len(files))).round().astype(int).tolist()
    listed = list(files)
    listened = frozenset(listed[place] for place in places)
    todo = []
    for path in track(files, "continuing", "file", shown=progress and len(journal) > 0):
        known = journal.take(file_key("probe", path)) if len(journal) else None
        if known is None:
            todo.append(path)
        else:
            keep(MediaInfo(path, **known[0]))
    with Meter("scan", total=len(files), initial=len(files) - len(todo), unit="file", shown=progress) as meter:
        workers = available_cores() if workers is None else workers
        for info in probe_all(todo, workers=workers, function=partial(_probed, deep=deep, listened=listened)):
            keep(info)
            meter.update()
            if journal.path is not None and info.error not in _PASSING:
                journal.add(file_key("probe", info.path), [_told(info)])
    return facts


def fill(manifest: Manifest, facts: FileFacts) -> Manifest:
    """The manifest with what a scan found out."""
    columns: dict[str, Any] = {name: values[facts.rows] for name, values in (facts.numbers | facts.flags).items()}
    columns |= {name: facts.reason(name).tolist() for name in _REASONS}
    scanned = manifest.with_columns(columns)
    errors = [reason or outside for reason, outside in zip(columns["error"], scanned.reasons(), strict=True)]
    return scanned.with_columns({"error": errors})


def _probed(path: str, *, deep: bool | None, listened: frozenset[str]) -> MediaInfo:
    """`probe`, which also listens to a file among ``listened``."""
    info = probe(path, deep=deep)
    if path in listened and (info.channels or 0) > 1 and CANCELS not in info.warning:
        with suppress(MediaError):  # a deep scan tells what does not decode
            if cancels(path, info.audio_start or 0.0, _LISTENED_SECONDS):
                return replace(info, warning="; ".join(filter(None, (info.warning, CANCELS))))
    return info


def _told(info: MediaInfo) -> dict[str, Any]:
    """The fields that say something, without the path, which is the key."""
    told = {name: getattr(info, name) for name in _TOLD}  # dataclasses.asdict copies deeply, for half a probe's time
    return {name: value for name, value in told.items() if value not in (None, "")}
