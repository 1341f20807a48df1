"""Videos of 720p with sound, made here: a texture that moves under a moving block, tones for sound."""

from pathlib import Path

import av
import numpy as np

SIZE = (1280, 720)
FPS = 25
RATE = 44100


def make_sources(folder: Path, files: int, seconds: float = 10.0) -> Path:
    """``files`` videos of x264 (keyframes where it sets them, at most 250 frames apart) and AAC; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(files):
        _write(folder / f"{seed:03}.mp4", seconds, np.random.default_rng(seed))
    return folder


def _texture(rng: np.random.Generator) -> np.ndarray:
    """(H + 400, W + 400, 3) uint8 with the spectrum of camera pictures, 1 / frequency."""
    width, height = (side + 400 for side in SIZE)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(4):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.2
        spectrum[0, 0] = 0
        layer = np.fft.irfft2(spectrum, (height, width))
        layers.append(layer / layer.std())
    shade, *tints = layers  # as in most pictures, brightness varies more than colour does
    return np.stack([np.clip(128 + 45 * shade + 15 * tint, 0, 255) for tint in tints], axis=2).astype(np.uint8)


def _sound(rng: np.random.Generator, samples: int) -> np.ndarray:
    """(2, S) float32: tones that come and go. A coder would replace white noise by noise of its own."""
    time = np.arange(samples) / RATE
    tones = [
        np.sin(2 * np.pi * f * time) * np.sin(2 * np.pi * s * time)
        for f, s in rng.uniform((80, 0.1), (3000, 3), (8, 2))
    ]
    return np.repeat(0.08 * np.sum(tones, axis=0)[None], 2, axis=0).astype(np.float32)


def _write(path: Path, seconds: float, rng: np.random.Generator) -> None:
    texture, (width, height) = _texture(rng), SIZE
    sound = _sound(rng, round(seconds * RATE))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="stereo")
        for k in range(round(seconds * FPS)):
            y, x = int(200 + 190 * np.sin(k / 40)), int(200 + 190 * np.cos(k / 55))
            image = texture[y : y + height, x : x + width].copy()
            image[200:400, (7 * k) % 1000 : (7 * k) % 1000 + 200] = rng.integers(0, 255, 3)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        for first in range(0, sound.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, first : first + 1024]), "fltp", "stereo")
            frame.sample_rate, frame.pts = RATE, first
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
