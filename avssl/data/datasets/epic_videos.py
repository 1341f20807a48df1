"""The videos of EPIC-KITCHENS-100, which several sets of annotations share: where they lie, and how time is written."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from avssl.data.datasets.layout import AUDIO, VIDEO

logger = logging.getLogger(__name__)


def seconds(timestamp: str) -> float:
    """``HH:MM:SS.ss`` in seconds.

    >>> seconds("00:01:02.50")
    62.5
    """
    hours, minutes, rest = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def locate(rows: list[dict[str, object]], root: Path, prefer_audio_files: bool, title: str = "EPIC-Kitchens") -> None:
    """Gives every row its path; a video that is nowhere gets the one that the official download would give it.

    Args:
        rows: With "participant" and "video"; "path" is set.
        root: Folder of the videos: as downloaded (``P01/videos/P01_11.MP4``, with or without ``EPIC-KITCHENS/`` above),
            ``videos/P01/P01_11.MP4``, or flat. Extracted sound lies where the videos do, or so under ``audio/``.
        prefer_audio_files: Take the extracted sound of a video where both are there.
        title: Name of the data set, for the warning that counts what is missing.
    """
    found = _media(root, sorted({str(row["participant"]) for row in rows}), prefer_audio_files)
    missing: Counter[str] = Counter()
    for row in rows:
        video = str(row["video"])
        row["path"] = found.get(video, f"{row['participant']}/videos/{video}.MP4")
        if video not in found:
            missing[video] += 1
    if missing:
        videos = len({row["video"] for row in rows})
        logger.warning(
            "%s: %d of %d videos are missing under %s, with %d of %d segments; the first: %s",
            title, len(missing), videos, root, missing.total(), len(rows), ", ".join(list(missing)[:5]),
        )  # fmt: skip


def _media(root: Path, participants: Iterable[str], prefer_audio_files: bool) -> dict[str, str]:
    """Video id -> path relative to the root. Lists only the folders that may hold videos: a root with extracted
    frames has millions of files."""
    folders = ["", "videos/"]
    for name in participants:
        folders += [f"{name}/", f"{name}/videos/", f"{name}/audio/", f"videos/{name}/"]
    prefixes = ["", "EPIC-KITCHENS/", "audio/", "audio/EPIC-KITCHENS/", "EPIC-KITCHENS/audio/"]
    ranks = [AUDIO, VIDEO] if prefer_audio_files else [VIDEO, AUDIO]
    found: dict[str, tuple[int, str]] = {}
    for folder in [prefix + folder for prefix in prefixes for folder in folders]:
        if not (root / folder).is_dir():
            continue
        for name in sorted(os.listdir(root / folder)):
            stem, extension = os.path.splitext(name)
            rank = next((k for k, kind in enumerate(ranks) if extension.lower() in kind), None)
            if rank is not None and (stem not in found or rank < found[stem][0]):
                found[stem] = (rank, folder + name)
    return {stem: path for stem, (_, path) in found.items()}
