"""The clock of a demo clip: every synthesizer and painter shares these constants."""

import numpy as np

SAMPLE_RATE = 16000
FPS = 12.5
NUM_FRAMES = 30
FRAME_SIZE = 80
SECONDS = NUM_FRAMES / FPS
SAMPLES_PER_FRAME = 1280  # a whole number at 12.5 frames a second: sound and picture share one grid
NUM_SAMPLES = NUM_FRAMES * SAMPLES_PER_FRAME


def frame_times() -> np.ndarray:
    """Mid-exposure time of each frame in seconds, shape (NUM_FRAMES,): frame i shows [i, i + 1) / FPS."""
    return (np.arange(NUM_FRAMES) + 0.5) / FPS


def sample_times() -> np.ndarray:
    """Time of each audio sample in seconds, shape (NUM_SAMPLES,)."""
    return np.arange(NUM_SAMPLES) / SAMPLE_RATE
