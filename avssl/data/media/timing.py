"""Which frame is on screen at an instant."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avssl.data.media.errors import MediaError

# How far outside the pictures an instant may lie (sound often runs a little longer) and still get the nearest frame.
_TOLERANCE = 0.5
# Containers round timestamps, to 1 ms at worst; a frame that starts this much after an instant is already on.
ROUNDING = 6e-4
# Frames are shown at most so many packets after the one that is shown before them (H.264's and HEVC's largest delay).
REORDER = 16


def frame_indices(starts: np.ndarray, wanted: np.ndarray, path: str | Path) -> np.ndarray:
    """Index of the frame on screen at each instant; ``starts`` (N,) ascending, ``wanted`` (T,), both in seconds.

    A frame stays until the next one starts, whatever the frame rate does; the last one stays for a typical interval.
    """
    interval = float(np.median(np.diff(starts))) if len(starts) > 1 else 0.0
    first, end, tolerance = starts[0], starts[-1] + interval, max(_TOLERANCE, interval)
    if wanted.min() < first - tolerance or wanted.max() > end + tolerance:
        span = f"asked {wanted.min():.2f} to {wanted.max():.2f} s, pictures {first:.2f} to {end:.2f} s"
        raise MediaError(path, "frame outside video", span)
    return np.clip(np.searchsorted(starts, wanted + ROUNDING, side="right") - 1, 0, len(starts) - 1)
