"""Where in the picture that which sounds is: the truth that data may state in a column ``box`` of its manifest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

BOX = "box"
HELP = f"a column {BOX!r} with left, top, right and bottom in shares of the picture, such as '0.1 0.2 0.5 0.6'"


@dataclass(frozen=True)
class Box:
    """A box in the upright picture, for all of a clip's frames; sides are shares of its width and height, in 0..1."""

    left: float
    top: float
    right: float
    bottom: float

    def mask(self, height: int, width: int, square: float, side: int) -> NDArray[np.bool_]:
        """(side, side) bool: the box in what an encoder sees of the picture, true where a pixel's centre lies in it.

        Args:
            height, width: Of the picture, in pixels.
            square: Side of the central square that the encoder sees, as a share of the picture's shorter side.
            side: Pixels of the mask.
        """
        seen = square * min(height, width)
        centres = (np.arange(side) + 0.5) / side - 0.5
        x, y = 0.5 + centres * seen / width, 0.5 + centres * seen / height
        inside_x, inside_y = (x >= self.left) & (x < self.right), (y >= self.top) & (y < self.bottom)
        return inside_y[:, None] & inside_x[None, :]


def has_boxes(manifest: Manifest) -> bool:
    """Whether any clip has a box."""
    return BOX in manifest.table.column_names and any(value not in (None, "") for value in manifest.column(BOX))


def read_boxes(manifest: Manifest) -> list[Box | None]:
    """The box of each clip; None where the data state none.

    Raises:
        DataError: a value is no box; the message names the clip.
    """
    if BOX not in manifest.table.column_names:
        return [None] * len(manifest)
    pairs = zip(manifest.column("clip_id"), manifest.column(BOX), strict=True)
    return [None if value in (None, "") else _read(clip_id, str(value)) for clip_id, value in pairs]


def _read(clip_id: str, value: str) -> Box:
    try:
        sides: Sequence[float] = [float(part) for part in value.replace(",", " ").split()]
    except ValueError:
        sides = ()
    good = len(sides) == 4 and all(math.isfinite(side) and 0 <= side <= 1 for side in sides)
    if not good or sides[0] >= sides[2] or sides[1] >= sides[3]:
        raise DataError(f"{BOX}: clip {clip_id!r} has {value!r}, which is no box; give {HELP}")
    return Box(*sides)
