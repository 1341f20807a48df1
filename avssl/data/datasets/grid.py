"""GRID: talking faces, six-word commands of a fixed grammar (Cooke et al., JASA 2006)."""

import re
from pathlib import Path

import numpy as np

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import VIDEO, media_files
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# One character of the file name for each word, in the corpus' order; W is not among its letters.
WORDS = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "colour": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    "digit": dict(zip("z123456789", DIGITS, strict=True)),
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}


@register_dataset("grid", clip_seconds=2.56, eval_clips=1, head="digit")
def grid(root: Path, *, test_clips: int = 100, seed: int = 0) -> Manifest:
    """Videos such as ``clips/bbaf3s.mp4`` or ``s1/bbaf3s.mpg`` anywhere under ``root``: "bin blue at F 3 soon".

    Args:
        root: The folder.
        test_clips: Number of clips, drawn with ``seed``, that are split "test"; the others are "train".
        seed: Seed of the draw.
    """
    pattern = re.compile("".join(f"[{''.join(characters)}]" for characters in WORDS.values()))
    paths = [path for path in media_files(root, VIDEO) if pattern.fullmatch(Path(path).stem)]
    if not paths:
        raise DataError(f"GRID: no video named like bbaf3s.mp4 under {root}; get it from zenodo.org/records/3625687")
    if not 0 <= test_clips < len(paths):
        raise DataError(f"GRID: option test_clips must lie in 0..{len(paths) - 1}, got {test_clips}")
    test = set(np.random.default_rng(seed).permutation(len(paths))[:test_clips].tolist())
    rows = [
        {
            "clip_id": path.rsplit(".", 1)[0],
            "path": path,
            "split": "test" if k in test else "train",
            "speaker": match[0] if (match := re.search(r"(?<![^/])s\d+(?=/)", path)) else None,
            **{
                f"label.{head}": words[character]
                for (head, words), character in zip(WORDS.items(), Path(path).stem, strict=True)
            },
        }
        for k, path in enumerate(paths)
    ]
    return Manifest.from_rows(rows, root, {head: list(words.values()) for head, words in WORDS.items()})
