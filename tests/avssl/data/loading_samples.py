"""Small media files whose sound and pictures both tell the time."""

import wave
from pathlib import Path

import av
import numpy as np

from avssl.data.manifest import Manifest

RATE = 16000


def write_ramp_wav(path: Path, seconds: float, rate: int = RATE) -> Path:
    """A wav whose sample value is its time: 0.05 per second, so that a clip says where it was cut out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.arange(round(seconds * rate)) / rate * 0.05
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_clock_video(path: Path, seconds: float = 10.0, fps: int = 20, size: tuple[int, int] = (48, 32)) -> Path:
    """A video, width x height, whose grey level is 20 + 20 t and whose sound has the value 0.05 t at time t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "4", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for k in range(round(seconds * fps)):
            image = np.full((size[1], size[0], 3), round(20 + 20 * k / fps), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        samples = (np.arange(round(seconds * RATE)) / RATE * 0.05 * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def wav_manifest(root: Path, count: int, seconds: float = 3.0, broken: tuple[int, ...] = ()) -> Manifest:
    """``count`` ramps with labels, of which those numbered in ``broken`` are not media but claim to be usable."""
    rows = []
    for k in range(count):
        file = write_ramp_wav(root / f"{k:03}.wav", seconds)
        if k in broken:
            file.write_bytes(b"no sound at all " * 64)
        rows.append({"clip_id": file.stem, "path": file.name, "duration": seconds, "has_audio": True,
                     "has_video": False, "label.number": k % 3})  # fmt: skip
    return Manifest.from_rows(rows, root, {"number": ["zero", "one", "two"]})
