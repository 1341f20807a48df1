"""EPIC-Kitchens-100: verbs and nouns of actions in long kitchen videos (Damen et al., IJCV 2022)."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from avssl.data.datasets import nearest, register_dataset
from avssl.data.datasets.layout import AUDIO, VIDEO, read_table
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, CHALLENGE = "EPIC_100_train.csv", "EPIC_100_validation.csv", "EPIC_100_test_timestamps.csv"
VERBS, NOUNS = "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv"
TAIL = {"verb": "EPIC_100_tail_verbs.csv", "noun": "EPIC_100_tail_nouns.csv"}
UNSEEN = {
    VALIDATION: "EPIC_100_unseen_participant_ids_validation.csv",
    CHALLENGE: "EPIC_100_unseen_participant_ids_test.csv",
}
SOURCE = "github.com/epic-kitchens/epic-kitchens-100-annotations"


# No head is named: verb and noun are trained together, and "action" is scored from both.
# NUM_ENSEMBLE_VIEWS of ekazakos/auditory-slow-fast is 10, and its softmaxes are averaged.
@register_dataset("epic-kitchens", clip_seconds=2.0, eval_clips=10, head=None, protocol="Auditory SlowFast")
def epic_kitchens(
    root: Path,
    *,
    annotations: str | None = None,
    test: str = "validation",
    prefer_audio_files: bool = False,
    trial: bool = False,
    trial_test_participants: Sequence[str] = (),
) -> Manifest:
    """Action segments with heads "verb" (97) and "noun" (300).

    Columns "participant" and "video"; and what the official metrics divide by, "yes" or "no", null where the official
    list is not beside the other files: "unseen" (a participant without training videos), "tail_verb" and "tail_noun"
    (a rare class). The official training segments are split "train". A segment is timed by its timestamps, not by its
    frame numbers, which depend on the frame rate.

    Args:
        root: Folder of the videos, laid out as the official download (``P01/videos/P01_11.MP4``, with or without
            ``EPIC-KITCHENS/`` above), as ``videos/P01/P01_11.MP4``, or flat; extracted sound (.wav, .flac, .m4a ...,
            also under ``audio/``) instead of a video serves training on sound alone.
        annotations: Folder of the official CSV files; default: ``root``, its folder ``annotations`` or
            ``epic-kitchens-100-annotations``.
        test: What is split "test": "validation", the official validation segments, on which published numbers are
            reported; or "challenge", the official test segments, which have no labels, the validation segments being
            split "val" then.
        prefer_audio_files: Take the extracted sound of a video where both are there.
        trial: Use the validation file alone, divided by participants into "train" and "test". For trial runs only:
            the numbers compare with nothing published.
        trial_test_participants: With ``trial``, the participants of "test"; default: every fourth one.

    Raises:
        DataError: a file of annotations is missing or wrong, or an option is; the message names it.
    """
    splits = ["validation", "challenge"]
    if test not in splits:
        raise DataError(
            f"EPIC-Kitchens: option test must be {' or '.join(splits)}, got {test!r}{nearest(str(test), splits)}"
        )
    if trial and test == "challenge":
        raise DataError("EPIC-Kitchens: option trial divides the validation file; it does not go with test: challenge")
    folder = _annotations(root, annotations)
    heads = {"verb": _classes(folder / VERBS), "noun": _classes(folder / NOUNS)}
    if trial:
        rows = _segments(folder / VALIDATION, "test", heads)
        _divide(rows, trial_test_participants)
        logger.warning("EPIC-Kitchens: a trial on the validation file; its numbers compare with nothing published")
    else:
        if not (folder / TRAIN).is_file():
            raise DataError(
                f"EPIC-Kitchens: no {TRAIN} in {folder}; it is distributed at {SOURCE} "
                "(to try things on the validation file alone, set the option trial: true)"
            )
        rows = _segments(folder / TRAIN, "train", heads)
        validation = _segments(folder / VALIDATION, "test" if test == "validation" else "val", heads)
        _mark_unseen(validation, folder / UNSEEN[VALIDATION])
        rows += validation
        if test == "challenge":
            unlabelled = _segments(folder / CHALLENGE, "test", {})
            _mark_unseen(unlabelled, folder / UNSEEN[CHALLENGE])
            rows += unlabelled
    _mark_tail(rows, folder, heads)
    locate(rows, root, prefer_audio_files)
    return Manifest.from_rows(rows, root, heads)


def _annotations(root: Path, folder: str | None) -> Path:
    places = [root / Path(folder).expanduser()] if folder else [root, root / "annotations"]
    if not folder:
        places.append(root / "epic-kitchens-100-annotations")
    for place in places:
        if (place / VALIDATION).is_file():
            return place
    tried = ", ".join(map(str, places))
    raise DataError(
        f"EPIC-Kitchens: no {VALIDATION} in {tried}; the annotations are distributed at {SOURCE}: "
        "name their folder with the option annotations"
    )


def _classes(file: Path) -> list[str]:
    table = read_table(file, ["id", "key"])
    if table["id"] != [str(k) for k in range(len(table["id"]))]:
        raise DataError(f"{file}: column 'id' must count 0, 1, 2 ...")
    return [str(key) for key in table["key"]]


def _segments(file: Path, split: str, heads: dict[str, list[str]]) -> list[dict[str, object]]:
    """The rows of a file; ``heads`` names the labels that it has."""
    columns = ["narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp"]
    labels = {head: f"{head}_class" for head in heads}
    table = read_table(file, [*columns, *labels.values()])
    rows = []
    for k, cells in enumerate(zip(*(table[column] for column in [*columns, *labels.values()]), strict=True)):
        try:
            clip_id, participant, video, start, stop = map(str, cells[:5])
            row: dict[str, object] = {
                "clip_id": clip_id,
                "participant": participant,
                "video": video,
                "start": seconds(start),
                "end": seconds(stop),
                "split": split,
            }
            for (head, classes), cell in zip(heads.items(), cells[5:], strict=True):
                row[f"label.{head}"] = int(str(cell))
                if not 0 <= int(str(cell)) < len(classes):
                    raise ValueError(f"column {labels[head]!r}: class {cell} is not in 0..{len(classes) - 1}")
            if not seconds(start) < seconds(stop):
                raise ValueError(f"column 'stop_timestamp': {stop} is not after {start}")
        except ValueError as error:
            raise DataError(f"{file}: row {k + 1} ({cells[0]}): {error}") from error
        rows.append(row)
    return rows


def _divide(rows: list[dict[str, object]], test: Sequence[str]) -> None:
    participants = sorted({str(row["participant"]) for row in rows})
    for name in test:
        if name not in participants:
            raise DataError(
                f"EPIC-Kitchens: option trial_test_participants: no {name!r}{nearest(name, participants)}; "
                f"the validation file has {', '.join(participants)}"
            )
    chosen = set(test or participants[::4])
    for row in rows:
        row["split"] = "test" if row["participant"] in chosen else "train"


def _mark_unseen(rows: list[dict[str, object]], file: Path) -> None:
    participants = _optional_list(file, "participant_id", "unseen participants")
    for row in rows:
        row["unseen"] = None if participants is None else _yes(str(row["participant"]) in participants)


def _mark_tail(rows: list[dict[str, object]], folder: Path, heads: dict[str, list[str]]) -> None:
    for head, classes in heads.items():
        listed = _optional_list(folder / TAIL[head], head, f"tail {head}s")
        tail = None if listed is None else {int(k) for k in listed if k.isdecimal() and int(k) < len(classes)}
        if listed is not None and tail is not None and len(tail) < len(listed):
            raise DataError(f"{folder / TAIL[head]}: column {head!r}: not all are classes 0..{len(classes) - 1}")
        for row in rows:
            label = row.get(f"label.{head}")
            row[f"tail_{head}"] = None if tail is None or label is None else _yes(label in tail)


def _optional_list(file: Path, column: str, title: str) -> Collection[str] | None:
    """One column of a list that older downloads of the annotations lack; None where it is not there.

    Not a warning: it matters to evaluation alone, which tells again what it leaves out.
    """
    if not file.is_file():
        logger.info(
            "EPIC-Kitchens: no %s: metrics on %s will be left out; it is distributed at %s", file, title, SOURCE
        )
        return None
    return {str(value) for value in read_table(file, [column])[column]}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


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
