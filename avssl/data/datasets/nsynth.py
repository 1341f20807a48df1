"""NSynth: single notes of 4 s by a thousand instruments (Engel et al., ICML 2017)."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avssl.data.datasets import register_dataset
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

# In the order of the numbers of the fields "instrument_family" and "instrument_source".
FAMILIES = [
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal",
]  # fmt: skip
SOURCES = ["acoustic", "electronic", "synthetic"]
PITCHES = [str(pitch) for pitch in range(128)]
SPLITS = {"nsynth-train": "train", "nsynth-valid": "val", "nsynth-test": "test"}


@register_dataset("nsynth", clip_seconds=4.0, eval_clips=1, head="family")
def nsynth(root: Path) -> Manifest:
    """``nsynth-train``, ``nsynth-valid`` and ``nsynth-test``, each with ``examples.json`` and ``audio/*.wav``.

    Heads "family" (11 classes), "source" (3) and "pitch" (128 MIDI notes); column "instrument". The instruments of
    the training split are in neither of the others. The official valid and test splits hold no synth_lead: family is
    scored there on the other ten.

    Args:
        root: The folder that holds the three; one that is absent is told in a warning.

    Raises:
        DataError: None of the three is there, or an ``examples.json`` is broken or has a field out of range.
    """
    rows: list[dict[str, Any]] = []
    missing = []
    for folder, split in SPLITS.items():
        if (root / folder / "examples.json").is_file():
            rows += _notes(root, folder, split)
        else:
            missing.append(f"{folder}/examples.json")
    if not rows:
        raise DataError(
            f"NSynth: no {', '.join(missing)} under {root}; unpack the json/wav archives of "
            "magenta.tensorflow.org/datasets/nsynth there"
        )
    if missing:
        logger.warning("NSynth: no %s under %s", ", ".join(missing), root)
    return Manifest.from_rows(rows, root, {"family": FAMILIES, "source": SOURCES, "pitch": PITCHES})


def _notes(root: Path, folder: str, split: str) -> Iterator[dict[str, Any]]:
    file = root / folder / "examples.json"
    try:
        examples = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}; unpack the archive again") from error
    if not isinstance(examples, dict):
        raise DataError(f"{file}: must map names of notes to their fields")
    for name, fields in sorted(examples.items()):
        yield {
            "clip_id": name,
            "path": f"{folder}/audio/{name}.wav",
            "split": split,
            "instrument": fields.get("instrument_str"),
            "label.family": _index(fields, "instrument_family", len(FAMILIES), file, name),
            "label.source": _index(fields, "instrument_source", len(SOURCES), file, name),
            "label.pitch": _index(fields, "pitch", len(PITCHES), file, name),
        }


def _index(fields: dict[str, Any], key: str, count: int, file: Path, name: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or not 0 <= value < count:
        raise DataError(f"{file}: {name}: field {key!r}: {value!r} is not in 0..{count - 1}")
    return value
