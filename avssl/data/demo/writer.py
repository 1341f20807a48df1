"""Write a clip as mp4 (h264 + aac), the same bytes for the same clip and library versions."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags

from avssl.data.demo.timing import FPS, SAMPLE_RATE


def write_mp4(
    path: Path, frames: np.ndarray, audio: np.ndarray, *, fps: float = FPS, sample_rate: int = SAMPLE_RATE
) -> None:
    """Encode frames (T, H, W, 3) uint8, of even height and width, and audio (S,) float32.

    One thread and bit-exact flags keep clock, host and thread count out of the file. The muxer stores the encoder's
    priming samples in an edit list, so that both streams start at 0 in any reader that honours it.

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
