"""Clips that stand in two splits, by video, bytes or sound: they make a test score too good."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from avssl.data.file_stats import file_stats
from avssl.data.health_fingerprint import same_sounds
from avssl.data.manifest import Manifest
from avssl.data.media.errors import raise_if_machine
from avssl.data.scan_report import EXAMPLES
from avssl.progress import Meter, track

logger = logging.getLogger(__name__)

YOUTUBE_COLUMN = "youtube_id"


@dataclass(frozen=True)
class Twins:
    """(N,) int64: rows of different splits with the same number >= 0 are the same; -1 where a row has no twin.

    None: not looked at.
    """

    youtube: np.ndarray | None
    bytes: np.ndarray | None
    sound: np.ndarray | None

    def named(self) -> dict[str, np.ndarray | None]:
        """By the name that the report uses."""
        return {"same_youtube_id": self.youtube, "same_bytes": self.bytes, "same_sound": self.sound}

    def rows(self) -> np.ndarray | None:
        """(N,) bool: has a twin of any kind; None if none was looked at."""
        looked = [groups >= 0 for groups in self.named().values() if groups is not None]
        return np.logical_or.reduce(looked) if looked else None


def find_twins(manifest: Manifest, words: np.ndarray | None, progress: bool = True) -> Twins:
    """Look for clips of one split that are in another one, too.

    Args:
        manifest: the clips; a column "youtube_id" says which video a clip is cut from.
        words: (N, 64) fingerprints of their sounds; None compares neither bytes nor sounds, which need reading.
        progress: as for :func:`avssl.data.scan.scan`.
    """
    names = sorted(set(manifest.column("split")))
    splits = np.asarray([names.index(split) for split in manifest.column("split")], dtype=np.int64)
    youtube = None
    if YOUTUBE_COLUMN in manifest.table.column_names:
        youtube = _across(manifest.column(YOUTUBE_COLUMN), splits)
    if words is None:
        return Twins(youtube, None, None)
    same_bytes = _same_bytes(manifest, splits, progress)
    with Meter("comparing sounds", shown=progress):
        return Twins(youtube, same_bytes, same_sounds(words, splits))


def twins_report(manifest: Manifest, twins: Twins) -> dict[str, Any]:
    """JSON-able: kind -> {"clips", "groups", "examples": [[[split, path], ...], ...]}, or None: not looked at."""
    report: dict[str, Any] = {}
    for name, groups in twins.named().items():
        if groups is None:
            report[name] = None
            continue
        numbers, counts = np.unique(groups[groups >= 0], return_counts=True)
        examples = []
        for number in numbers[:EXAMPLES]:
            members = [manifest.table.slice(int(row), 1) for row in np.flatnonzero(groups == number)[:4]]
            examples.append([[member["split"][0].as_py(), member["path"][0].as_py()] for member in members])
        report[name] = {"clips": int(counts.sum()), "groups": len(numbers), "examples": examples}
    return report


def _across(keys: Iterable[Hashable | None], splits: np.ndarray) -> np.ndarray:
    """(N,) int64 group numbers of rows of different splits with equal keys; None is equal to nothing."""
    rows_of: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            rows_of[key].append(row)
    groups = np.full(len(splits), -1, dtype=np.int64)
    for number, rows in enumerate(rows_of.values()):
        if len(rows) > 1 and len(set(splits[rows].tolist())) > 1:
            groups[rows] = number
    return groups


def _same_bytes(manifest: Manifest, splits: np.ndarray, progress: bool) -> np.ndarray:
    """Groups of rows with the same span of the same bytes; only files of equal size in different splits are read."""
    paths = manifest.column("path")
    files = list(dict.fromkeys(paths))
    # None for what is not there, and for an empty file, which is like every other one.
    sizes = {
        path: None if stat is None else stat[0] or None
        for path, stat in zip(files, file_stats(manifest.root, files, progress), strict=True)
    }
    suspects = _across([sizes[path] for path in paths], splits) >= 0
    todo = dict.fromkeys(path for path, suspect in zip(paths, suspects, strict=True) if suspect)
    digests = {path: _digest(manifest, path) for path in track(todo, "comparing", "file", shown=progress)}
    keys = []
    for path, start, end in zip(paths, manifest.column("start"), manifest.column("end"), strict=True):
        digest = digests.get(path)
        keys.append(None if digest is None else (digest, start, end))
    return _across(keys, splits)


def _digest(manifest: Manifest, path: str) -> bytes | None:
    try:
        with open(manifest.root / path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise_if_machine(error, manifest.root / path)
        logger.warning("%s: not compared with other files: %s", path, error.strerror)
        return None
