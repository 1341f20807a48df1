"""Clips cut from YouTube videos: their files, found by the usual names in any folder, as rows of a manifest."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from avssl.data.datasets.layout import AUDIO, media_files
from avssl.data.failures import DataError
from avssl.progress import track

logger = logging.getLogger(__name__)

_YOUTUBE_ID = re.compile(r"[\w-]{11}", re.ASCII)


class Segment(NamedTuple):
    """A span of a YouTube video, in seconds; ``label`` is what the manifest takes for the head."""

    youtube_id: str
    start: float
    end: float
    split: str
    label: Any


def checked_id(text: str, where: str) -> str:
    """``text`` if it is a YouTube id: 11 letters, digits, ``_`` or ``-``.

    Raises:
        DataError: it is none; the message begins with ``where``.
    """
    if not _YOUTUBE_ID.fullmatch(text):
        raise DataError(f"{where}: {text!r} is not a YouTube id (11 letters, digits, _ or -)")
    return text


def youtube_rows(
    segments: Iterable[Segment],
    root: Path,
    *,
    title: str,
    total: int | None = None,
    whole_videos: bool = False,
    plain_names: bool = False,
    prefer_audio_files: bool = False,
) -> list[dict[str, Any]]:
    """Rows of a manifest with the head "sound" and the column "youtube_id".

    A clip that is not there keeps its row, for the scan to mark. One listed twice is kept as it is listed first, so
    that none is in two splits. Both are counted in a warning.

    Args:
        segments: What the annotations list.
        root: Folder of the media, which may lie in any folder under it.
        title: Name of the data set, for warnings and the progress that long lists show.
        total: Number of segments where ``segments`` has no length, for the progress.
        whole_videos: The files are whole videos, ``ID.mp4``, in which the segments' times hold; otherwise each file is
            one clip, named as in :func:`clip_stems`.
        plain_names: Clips may also be named ``ID.wav`` and ``YID.wav`` or the like (AudioSet, one clip of a video).
        prefer_audio_files: Take the sound file where there is a video file too.
    """
    files = _files_by_stem(root, prefer_audio_files)
    ids = {stem[:11] for stem in files} | {stem[1:12] for stem in files if plain_names and stem.startswith("Y")}
    rows: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    repeated: list[str] = []
    for segment in track(segments, f"listing {title}", "clip", total=total):
        youtube_id, start, end, split, label = segment
        clip_id = f"{youtube_id}_{_padded(start)}"
        if clip_id in rows:
            repeated.append(clip_id)
            continue
        path = None
        if whole_videos:
            path = files.get(youtube_id)
        elif youtube_id in ids:  # spares the many names of the many clips that are not there
            path = next(filter(None, map(files.get, clip_stems(youtube_id, start, end, plain_names))), None)
        if path is None:
            missing.append(clip_id)
            path = f"{youtube_id if whole_videos else clip_id}.mp4"
        rows[clip_id] = {
            "clip_id": clip_id,
            "path": path,
            "start": start if whole_videos else None,
            "end": end if whole_videos else None,
            "split": split,
            "youtube_id": youtube_id,
            "label.sound": label,
        }
    for clips, what in ((repeated, "listed more than once and kept as first listed"), (missing, f"missing in {root}")):
        if clips:
            share, some = len(clips) / len(rows), ", ".join(clips[:5])
            logger.warning("%s: %d of %d clips (%.1f %%) are %s: %s", title, len(clips), len(rows), 100 * share, what,
                           some + (", ..." if len(clips) > 5 else ""))  # fmt: skip
    return list(rows.values())


def clip_stems(youtube_id: str, start: float, end: float, plain_names: bool = False) -> Iterator[str]:
    """Names, without ending, under which downloaders store the clip of a video from ``start`` to ``end`` seconds.

    >>> list(clip_stems("abcdefghijk", 30, 40))[:2]
    ['abcdefghijk_000030', 'abcdefghijk_000030_000040']
    """
    names = (youtube_id, f"Y{youtube_id}") if plain_names else (youtube_id,)
    if plain_names:
        yield from names
    for name in names:
        if float(start).is_integer():
            yield f"{name}_{start:06.0f}"
            yield f"{name}_{start:06.0f}_{end:06.0f}"
            yield f"{name}_{start:.0f}"
            yield f"{name}_{start:.0f}_{end:.0f}"
        yield f"{name}_{start:.3f}_{end:.3f}"
        yield f"{name}_{start:.1f}_{end:.1f}"
        yield f"{name}_{start:.3f}"
        yield f"{name}_{1000 * start:.0f}_{1000 * end:.0f}"  # milliseconds


def _padded(start: float) -> str:
    return f"{start:06.0f}" if float(start).is_integer() else f"{start:010.3f}"


def _files_by_stem(root: Path, prefer_audio_files: bool) -> dict[str, str]:
    """File name without ending -> path relative to the root; of sound and video of one name, the preferred one."""
    found: dict[str, tuple[bool, str]] = {}
    for path in media_files(root):
        stem, extension = os.path.splitext(path.rsplit("/", 1)[-1])
        rank = (extension.lower() in AUDIO) != prefer_audio_files  # False, the preferred kind, comes first
        if stem not in found or rank < found[stem][0]:
            found[stem] = (rank, path)
    return {stem: path for stem, (_, path) in found.items()}
