"""Free Spoken Digit Dataset: ten digits by six speakers, fifty takes each, 8 kHz."""

import re
from collections.abc import Sequence
from pathlib import Path

from avssl.data.datasets import nearest, register_dataset
from avssl.data.datasets.layout import media_files
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest


@register_dataset("fsdd", clip_seconds=1.0, eval_clips=1, head="digit")
def fsdd(root: Path, *, held_out_speakers: Sequence[str] = ()) -> Manifest:
    """``recordings/7_jackson_32.wav`` and the like, or the recordings themselves, under ``root``.

    Heads "digit" and "speaker", column "take". The official test split, takes 0 to 4, holds the voices of the training
    split; holding speakers out measures digits rather than voices.

    Args:
        root: The folder.
        held_out_speakers: Speakers that are split "test", all others being "train"; none: takes 0 to 4 are "test".
    """
    rows = []
    for path in media_files(root, {".wav"}):
        match = re.fullmatch(r"(\d)_([a-z]+)_(\d+)", Path(path).stem)
        if match is None:
            continue
        digit, speaker, take = match.groups()
        held_out = speaker in held_out_speakers if held_out_speakers else int(take) < 5
        rows.append(
            {
                "clip_id": Path(path).stem,
                "path": path,
                "split": "test" if held_out else "train",
                "take": take,
                "label.digit": digit,
                "label.speaker": speaker,
            }
        )
    if not rows:
        raise DataError(
            f"FSDD: no recordings/DIGIT_SPEAKER_TAKE.wav under {root}; "
            "get it from github.com/Jakobovski/free-spoken-digit-dataset"
        )
    speakers = sorted({str(row["label.speaker"]) for row in rows})
    for name in held_out_speakers:
        if name not in speakers:
            raise DataError(f"FSDD: no speaker {name!r}{nearest(name, speakers)}; there are {', '.join(speakers)}")
    return Manifest.from_rows(rows, root, {"digit": [str(digit) for digit in range(10)], "speaker": speakers})
