"""Speech Commands v2: 35 spoken words of one second by thousands of voices (Warden, arXiv 1804.03209)."""

import logging
from collections import Counter
from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import media_files
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

WORDS = [
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
]  # fmt: skip
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
# Minutes of noise to mix into training, not clips of a word.
NOISE = "_background_noise_"


@register_dataset("speech-commands", clip_seconds=1.0, eval_clips=1, head="word", protocol="AST")
def speech_commands(root: Path) -> Manifest:
    """``yes/0a7c2a8d_nohash_0.wav`` and the like, with head "word" (35 classes) and column "speaker".

    Splits are the official lists: ``validation_list.txt`` is "val", ``testing_list.txt`` "test", all others are
    "train"; no speaker is in two of them. A listed recording that is not there keeps its row, for the scan to mark.
    The folder ``_background_noise_`` is left out; folders that are no word of version 2 are counted in a warning.

    Args:
        root: The folder with the word folders and the lists, or the one above it (``speech_commands_v0.02``).

    Raises:
        DataError: The lists or all recordings are missing, or a list names what is no recording of a word.
    """
    folder = _folder(root)
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    listed = {path: split for split, name in LISTS.items() for path in _read_list(folder / name)}
    rows, unknown = [], Counter[str]()
    for path in sorted({*media_files(folder, {".wav"}), *listed}):
        word = path.split("/")[0]
        if word == NOISE:
            continue
        if path.count("/") != 1 or word not in WORDS:
            unknown[word] += 1
            continue
        stem = Path(path).stem
        rows.append(
            {
                "clip_id": f"{word}/{stem}",
                "path": prefix + path,
                "split": listed.get(path, "train"),
                "speaker": stem.split("_nohash_")[0],
                "label.word": word,
            }
        )
    if not rows:
        raise DataError(f"Speech Commands: no WORD/SPEAKER_nohash_0.wav under {folder}")
    if unknown:
        counts = ", ".join(f"{word} ({count})" for word, count in unknown.most_common(5))
        logger.warning("Speech Commands: %d files are of no word of version 2, left out: %s", unknown.total(), counts)
    absent = sorted(set(WORDS) - {str(row["label.word"]) for row in rows})
    if absent:
        logger.warning("Speech Commands: no recording of %s; version 1 has only 30 of the words", ", ".join(absent))
    return Manifest.from_rows(rows, root, {"word": WORDS})


def _folder(root: Path) -> Path:
    for folder in (root, *sorted(root.glob("*speech_commands*")), *sorted(root.glob("*/*speech_commands*"))):
        if all((folder / name).is_file() for name in LISTS.values()):
            return folder
    raise DataError(
        f"Speech Commands: no {' and '.join(LISTS.values())} in {root}; unpack speech_commands_v0.02.tar.gz there "
        "(tensorflow.org/datasets/catalog/speech_commands names its place)"
    )


def _read_list(file: Path) -> list[str]:
    """Paths ``WORD/FILE.wav``, one a line."""
    paths = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        path = line.strip()
        if not path:
            continue
        word, _, name = path.partition("/")
        if word not in WORDS or not name.endswith(".wav") or "/" in name:
            raise DataError(f"{file}: line {number}: {path!r} is not WORD/FILE.wav with a word of version 2")
        paths.append(path)
    return paths
