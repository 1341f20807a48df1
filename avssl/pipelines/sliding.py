"""Spectrograms of overlapping windows of which every frame is computed once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import mast
from avssl.data.windows import Window


class SlidingLogMel:
    """Cuts the spectrograms of the windows of one recording out of the frames of the whole.

    They equal those of the windows by themselves where every window begins at a frame: see :meth:`applies`. Frames
    before the window at hand are let go.

    Args:
        frontend: Of the model.
        hop: Seconds from window to window, less than the windows last.

    Raises:
        ValueError: the frames of these windows cannot be shared.
    """

    def __init__(self, frontend: mast.LogMel, hop: float) -> None:
        if not self.applies(frontend, hop):
            raise ValueError(
                f"windows every {hop:g} s do not begin at frames of this frontend, or it centres or fills clips"
            )
        self.frontend = frontend
        self._stream = mast.StreamingLogMel(frontend)
        self._frames: Tensor | None = None  # (1, 1, F, T), of which the first is number `_first` of the recording
        self._first = 0
        self._reached = 0  # samples of the recording that were pushed

    @staticmethod
    def applies(frontend: mast.LogMel, hop: float) -> bool:
        """Whether windows every ``hop`` seconds begin at frames, and frames do not depend on the rest of the clip."""
        step = hop * frontend.sample_rate / frontend.shift
        whole = frontend.center_clips or frontend.fixed_frames is not None
        return not whole and round(step) >= 1 and abs(step - round(step)) < 1e-9 * step

    @torch.inference_mode()
    def __call__(self, windows: Sequence[Window], device: torch.device) -> Tensor:
        """Spectrograms (N, 1, F, T) of the next N windows, on ``device``."""
        begins = [round(window.start * self.frontend.sample_rate) for window in windows]
        pieces = []
        for begin, window in zip(begins, windows, strict=True):
            if begin > self._reached:
                raise ValueError(f"the window at {window.start:g} s leaves a gap after the one before")
            pieces.append(window.waveform[self._reached - begin :])
            self._reached = begin + len(window.waveform)
        fresh = self._stream.push(torch.from_numpy(np.concatenate(pieces))[None].to(device))
        frames = fresh if self._frames is None else torch.cat((self._frames, fresh), dim=-1)
        shift, length = self.frontend.shift, self.frontend.num_frames(len(windows[0].waveform))
        starts = [begin // shift - self._first for begin in begins]
        cut = torch.cat([frames[..., start : start + length] for start in starts])
        self._frames, self._first = frames[..., starts[-1] :].clone(), begins[-1] // shift
        return cut
