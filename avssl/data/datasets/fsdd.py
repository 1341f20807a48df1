"""Free Spoken Digit Dataset: ten digits by six speakers, fifty takes each, 8 kHz."""

import re
from collections.abc import Sequence
from pathlib import Path

from avssl.data.datasets import nearest, register_dataset
from avssl.data.datasets.layout import media_files, unique_by_name
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

NAME = re.compile(r"\d_[a-z]+_\d+")  # digit, speaker, take


@register_dataset("fsdd", clip_seconds=1.0, eval_clips=1, head="digit")
def fsdd(root: Path, *, held_out_speakers: Sequence[str] = ()) -> Manifest:
    """``recordings/7_jackson_32.wav`` and the like, or the recordings themselves, under ``root``.

    Heads "digit" and "speaker", columns "take" and "speaker". The official test split, takes 0 to 4, holds the
    voices of the training split; holding speakers out measures digits rather than voices.

    Args:
        root: The folder.
        held_out_speakers: Speakers that are split "test", all others being "train"; none: takes 0 to 4 are "test".
    """
    rows = []
    recordings = [path for path in media_files(root, {".wav"}) if NAME.fullmatch(Path(path).stem)]
    for path in unique_by_name(recordings, "FSDD"):
        digit, speaker, take = Path(path).stem.split("_")
        held_out = speaker in held_out_speakers if held_out_speakers else int(take) < 5
        rows.append(
            {
                "clip_id": Path(path).stem,
                "path": path,
                "split": "test" if held_out else "train",
                "take": take,
                "speaker": speaker,  # keeps clips of one voice on one side of a hold-out
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
