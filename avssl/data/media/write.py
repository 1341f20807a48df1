"""Writing media: the sound of a file as a file of its own (mono FLAC or WAV of 16 bits, on the clock of its source),
and clips as mp4."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags

from avssl.data.media.audio import MISSING_SECONDS, MISSING_SHARE, Channel
from avssl.data.media.container import open_media, sound_from
from avssl.data.media.errors import MediaError, raise_if_machine
from avssl.data.media.extents import promised_end
from avssl.data.media.probe import MediaInfo, probe
from avssl.data.media.stream import stream_audio
from avssl.files import atomic_path

CODECS = {"flac": "flac", "wav": "pcm_s16le"}


@dataclass(frozen=True, slots=True)
class Extraction:
    """A file to extract the sound of, or, once done, what became of it.

    Attributes:
        path: the source.
        target: the sound file; its suffix is one of `CODECS`.
        sample_rate: Hz of the sound file, None for the source's.
        channel: "mean" of the channels, or the number of the one to take, counted from 0.
        seconds: length of the sound file.
        silence: of those, seconds at its beginning in which the source has no sound yet.
        warning: why the file holds a part of the source only, as `MediaInfo.warning`; "" where it holds all.
        error: short and countable, "" where all is well.
        detail: what is particular to this failure.
    """

    path: str
    target: str
    sample_rate: int | None = None
    channel: Channel = "mean"
    seconds: float = 0.0
    silence: float = 0.0
    warning: str = ""
    error: str = ""
    detail: str = ""


def extract_audio(job: Extraction) -> Extraction:
    """Writes the target, whole or not at all; never raises for what the source holds.

    The sound is what `read_audio` gives: channels averaged, silence where the source has a late start or a gap, so that
    annotated times hold in the target, too; a comment in its header says where a late start is, for `probe`. 16 bits
    keep a 16-bit mono source bit by bit; louder than full scale is clipped.
    """
    target = Path(job.target)
    try:
        info = probe(job.path, deep=False)
        if info.sample_rate is None:
            raise MediaError(job.path, info.error or info.audio_error)
        rate = job.sample_rate or info.sample_rate
        with atomic_path(target) as temporary:
            silence = info.audio_start or 0.0
            samples = write_audio(temporary, stream_audio(job.path, rate, channel=job.channel), rate, silence)
            if not samples:
                raise MediaError(job.path, "no audio")
            _refuse_cut_off(info, samples / rate)
    except MediaError as error:
        return replace(job, error=error.reason, detail=error.detail)
    except (OSError, av.FFmpegError) as error:
        raise_if_machine(error, getattr(error, "filename", None) or target)
        return replace(job, error="cannot be written", detail=str(error))
    return replace(job, seconds=samples / rate, silence=silence, warning=info.warning)


def write_audio(path: Path, blocks: Iterable[np.ndarray], sample_rate: int, silence: float = 0.0) -> int:
    """Writes blocks (S,) float32 in [-1, 1] as mono sound of 16 bits, and gives the number of samples.

    The suffix of ``path``, one of `CODECS`, chooses the format. Its header says of how many seconds ``silence`` at the
    beginning stands for sound that there is not.
    """
    samples = 0
    with av.open(str(path), "w") as container:
        if silence:
            container.metadata["comment"] = sound_from(silence)
        stream = container.add_stream(CODECS[path.suffix.removeprefix(".")], rate=sample_rate, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.format = "s16"
        stream.codec_context.thread_count = 1
        for block in blocks:
            integers = np.clip(np.rint(block * 32768.0), -32768, 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = sample_rate, samples
            container.mux(stream.encode(frame))
            samples += len(integers)
        container.mux(stream.encode())
    return samples


def _refuse_cut_off(info: MediaInfo, seconds: float) -> None:
    """Sound may well end before the pictures do; that both end long before the header says is a file cut off.

    Containers such as Matroska promise a duration for the whole file only, so that the reader cannot tell.
    """
    with open_media(info.path) as container:
        promised = promised_end(container) or 0.0
    there = max(seconds, info.duration or 0.0)
    if promised - there > max(MISSING_SECONDS, MISSING_SHARE * promised):
        raise MediaError(info.path, "file cut off", f"{there:.2f} of {promised:.2f} s")


def write_mp4(path: Path, frames: np.ndarray, audio: np.ndarray, *, fps: float, sample_rate: int) -> None:
    """Writes frames (T, H, W, 3) uint8, of even height and width, and audio (S,) float32 as mp4 (h264 and aac).

    The same clip and library versions give the same bytes: one thread and bit-exact flags keep clock, host and thread
    count out of the file. The muxer stores the encoder's priming samples in an edit list, so that both streams start at
    0 in any reader that honours it.

    Raises:
        OSError: the file cannot be written (PyAV's errors derive from it and keep ``errno``).
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        # Without zerolatency x264 looks ahead over the edge of such small pictures: other bytes on every run.
        video.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "threads": "1"}
        sound = container.add_stream("aac", rate=sample_rate, layout="mono")
        sound.bit_rate = 48000
        sound.options = {"aac_coder": "fast"}  # five times as fast; at 48 kbit/s mono nothing is lost that one hears
        for stream in (video, sound):
            stream.codec_context.flags |= Flags.bitexact
            stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, len(audio), 1024):
            block = av.AudioFrame.from_ndarray(audio[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate = sample_rate
            block.pts = start
            container.mux(sound.encode(block))
        container.mux(sound.encode())
