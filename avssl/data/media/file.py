"""A media file that stays open for several reads: sound and pictures, of one clip or of many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from avssl.data.media.audio import BEGINNING, AudioClip, Channel, Sound, check_channel, checked, sound_of
from avssl.data.media.container import find_audio, find_video, open_media
from avssl.data.media.errors import MediaError
from avssl.data.media.extents import repeats
from avssl.data.media.orientation import upright_size
from avssl.data.media.video import QUICK, frames_of, starts_of

# Files that likely are of a container whose header tells all that reading needs.
_QUICK = {".mp4", ".m4v", ".mov"}


class MediaFile:
    """Reads spans of one file; its header is read once, its decoders are kept from read to read.

    What a read gives does not depend on those before it: where a container's demuxer keeps something of them (all but
    MP4, MOV, FLAC and PCM), sound is read from the file opened anew.

    >>> with MediaFile("video.mp4") as file:  # doctest: +SKIP
    ...     sound, frames = file.audio(2.0, 4.0).waveform, file.frames([2.5, 3.5, 4.5, 5.5], size=112)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._open = ExitStack()
        self._container: InputContainer | None = None
        self._audio: AudioStream | None = None
        self._video: VideoStream | None = None
        self._size = (0, 0)  # of the pictures, as the header has it: a decoder overwrites it
        self._fresh = True
        self._quick = Path(path).suffix.lower() in _QUICK

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; a later read opens it again."""
        self._open.close()
        self._container = self._audio = self._video = None
        self._fresh = True

    def audio(
        self,
        start: float = 0.0,
        duration: float | None = None,
        sample_rate: int = 16000,
        channel: Channel = "mean",
    ) -> AudioClip:
        """Reads ``[start, start + duration)`` seconds as mono at ``sample_rate``.

        Channels are averaged (without the low-frequency one), so that a mono sound keeps its level in any layout, or
        one of them is taken; rates are converted by soxr. Second 0 is the start of the file's earliest stream, for
        sound and pictures alike.

        Args:
            start: seconds from the file's start.
            duration: seconds; None reads to the end of the sound.
            sample_rate: of the result, Hz.
            channel: "mean", or the number of a channel, counted from 0: where the mean cancels them, see
                `avssl.data.media.audio.channels_cancel`.

        Returns:
            AudioClip of exactly ``round(duration * sample_rate)`` samples. Where the stream has not begun or has ended
            there are zeros, and ``valid`` < 1 says so.

        Raises:
            MediaError: no usable audio stream; "no audio in span"; "audio shorter than expected" when more than
                max(0.1 s, 10 % of the span) is missing inside the stream's own extent (corrupt or cut-off file);
                "non-finite audio"; "no such channel".
            ValueError: a span or a channel that no file can have.
        """
        return checked(self.sound(start, duration, sample_rate, channel), self.path)

    def sound(
        self,
        start: float = 0.0,
        duration: float | None = None,
        sample_rate: int = 16000,
        channel: Channel = "mean",
    ) -> Sound:
        """As :meth:`audio`, without judging whether enough is there."""
        check_span(start, duration, sample_rate)
        check_channel(channel)
        if not self._fresh and (start < BEGINNING or not repeats(*self._audio_stream())):
            self.close()
        container, stream = self._audio_stream()
        self._fresh = False
        return sound_of(container, stream, self.path, start, duration, sample_rate, channel)

    def frames(self, times: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
        """The frames on screen at ``times``.

        Args:
            times: seconds from the file's start (that of its earliest stream, as for `audio`), in any order.
            size: scale the short side to this many pixels, keeping the aspect; done while decoding. None keeps it.

        Returns:
            (T, H, W, 3) uint8 RGB, upright where the file says how its pictures are to be turned.

        Raises:
            MediaError: no usable video stream; "frame outside video" for an instant more than 0.5 s (or one frame, if
                longer) before the first or after the last frame; "video does not decode".
        """
        wanted = checked_times(times, size)
        container, stream = self._video_stream()
        self._fresh = False
        return frames_of(container, stream, self.path, self._size, wanted, size)

    def frame_size(self) -> tuple[int, int]:
        """(width, height) of the pictures when they are upright, in pixels."""
        container, _ = self._video_stream()
        return upright_size(self.path, container.format.name, self._size)

    def frame_starts(self, start: float, end: float) -> np.ndarray:
        """Start of each frame that is on screen at a time from ``start`` to before ``end``: (N,) ascending seconds.

        The last one stays on screen after its end, and before the first one there is nothing.

        Raises:
            MediaError: no usable video stream; "video does not decode".
        """
        container, stream = self._video_stream()
        self._fresh = False
        return starts_of(container, stream, self.path, start, end)

    def _audio_stream(self) -> tuple[InputContainer, AudioStream]:
        container = self._opened()
        if self._audio is None:
            try:
                self._audio = find_audio(container, self.path)
            except MediaError:
                if not self._quick:
                    raise
                return self._slowly()._audio_stream()
        return container, self._audio

    def _video_stream(self) -> tuple[InputContainer, VideoStream]:
        container = self._opened()
        if self._video is None:
            try:
                self._video = find_video(container, self.path)
            except MediaError:
                if not self._quick:
                    raise
                return self._slowly()._video_stream()
            self._size = self._video.codec_context.width, self._video.codec_context.height
        return container, self._video

    def _opened(self) -> InputContainer:
        if self._container is None:
            try:
                self._container = self._open.enter_context(open_media(self.path, quick=self._quick))
            except MediaError:
                if not self._quick:
                    raise
                return self._slowly()._opened()
            if self._quick and self._container.format.name not in QUICK:
                return self._slowly()._opened()
        return self._container

    def _slowly(self) -> MediaFile:
        """The same file, opened with all that FFmpeg can find out."""
        self.close()
        self._quick = False
        return self


def read_audio(
    path: str | Path,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16000,
    channel: Channel = "mean",
) -> AudioClip:
    """:meth:`MediaFile.audio` of a file that is opened for it."""
    with MediaFile(path) as file:
        return file.audio(start, duration, sample_rate, channel)


def read_frames(path: str | Path, times: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
    """:meth:`MediaFile.frames` of a file that is opened for it."""
    with MediaFile(path) as file:
        return file.frames(times, size)


def check_span(start: float, duration: float | None, sample_rate: int) -> None:
    """Refuses, with a ValueError, a span that no file can have."""
    if start < 0 or (duration is not None and duration <= 0) or sample_rate <= 0:
        raise ValueError(f"need start >= 0, duration > 0, sample_rate > 0; got {start}, {duration}, {sample_rate}")


def checked_times(times: Sequence[float] | np.ndarray, size: int | None) -> np.ndarray:
    """``times`` as (T,) float64; refuses, with a ValueError, what no file can have."""
    wanted = np.asarray(times, dtype=np.float64)
    if wanted.ndim != 1 or not len(wanted) or not np.isfinite(wanted).all() or wanted.min() < 0:
        raise ValueError(f"times must be a non-empty list of seconds >= 0, got {times!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return wanted
