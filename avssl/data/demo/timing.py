"""The clock of the clips: every synthesizer and painter of a set shares its rates; the lengths are the demo's."""

import numpy as np

SAMPLE_RATE = 16000
FPS = 12.5
NUM_FRAMES = 30
FRAME_SIZE = 80
SECONDS = NUM_FRAMES / FPS
SAMPLES_PER_FRAME = 1280  # a whole number at 12.5 frames a second: sound and picture share one grid
NUM_SAMPLES = NUM_FRAMES * SAMPLES_PER_FRAME


def frame_times(count: int = NUM_FRAMES) -> np.ndarray:
    """Mid-exposure time of each frame in seconds, shape (count,): frame i shows [i, i + 1) / FPS."""
    return (np.arange(count) + 0.5) / FPS


def sample_times() -> np.ndarray:
    """Time of each audio sample in seconds, shape (NUM_SAMPLES,)."""
    return np.arange(NUM_SAMPLES) / SAMPLE_RATE
