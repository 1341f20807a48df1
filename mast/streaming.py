"""The log-mel of sound that comes piece by piece: every frame is computed once, as soon as its samples are there."""

import torch
from torch import Tensor

from mast.frontend import LogMel, check_waveform


class StreamingLogMel:
    """``LogMel`` over consecutive pieces of waveforms, cut anywhere.

    The frames of all pieces, side by side, are those of the whole (to float rounding: products round by the number of
    rows). What a frame still lacks is carried from piece to piece, less than one window.

    Args:
        frontend: whose frames they are. One with ``center_clips`` subtracts the mean of a whole clip, and one with
            ``fixed_frames`` fills it up or cuts it; a stream does not know where a clip ends, and refuses them.

    Raises:
        ValueError: the frontend centres clips, or fills them up.

    Examples:
        >>> stream = StreamingLogMel(LogMel())
        >>> [stream.push(torch.zeros(1, size)).shape[-1] for size in (300, 300, 8000)]
        [0, 2, 50]
    """

    def __init__(self, frontend: LogMel) -> None:
        if frontend.center_clips:
            raise ValueError(
                "this frontend has center_clips=True: it subtracts the mean of each whole clip, which is not known "
                "while a stream runs; compute the frames of every window anew"
            )
        if frontend.fixed_frames is not None:
            raise ValueError(
                f"this frontend has fixed_frames={frontend.fixed_frames}: each whole clip is filled up or cut to them, "
                "and a stream has no end; compute the frames of every window anew"
            )
        self.frontend = frontend
        self.reset()

    def reset(self) -> None:
        """Forget what was carried: the next piece begins another waveform."""
        self._carried: Tensor | None = None
        self._skip = 0  # samples to come that lie before the next frame, where frames are further apart than they last

    def push(self, waveform: Tensor) -> Tensor:
        """The next piece (B, S), S >= 0 -> the frames (B, 1, num_mels, T) that it completes, T >= 0.

        Raises:
            ValueError: not (B, S) of floats, or another B than before.
        """
        check_waveform(waveform)
        if self._carried is not None:
            if len(self._carried) != len(waveform):
                raise ValueError(f"{len(waveform)} waveforms follow {len(self._carried)}; reset() begins others")
            waveform = torch.cat((self._carried, waveform), dim=1)
        skipped = min(self._skip, waveform.shape[1])
        waveform, self._skip = waveform[:, skipped:], self._skip - skipped
        frames = self.frontend.num_frames(waveform.shape[1])
        step = frames * self.frontend.shift
        self._skip += max(0, step - waveform.shape[1])
        self._carried = waveform[:, step:].clone()
        if not frames:
            return waveform.new_zeros(len(waveform), 1, self.frontend.num_mels, 0, dtype=torch.float32)
        return self.frontend(waveform[:, : self.frontend.samples_for(frames)])
