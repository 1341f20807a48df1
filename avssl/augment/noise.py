"""Noise of a chosen colour."""

import torch
from torch import Tensor

# Power falls as 1 / f^exponent: not at all, by 3 dB and by 6 dB an octave; "random" draws each clip's own from 0 to 2.
NOISE_COLORS = {"white": (0.0, 0.0), "pink": (1.0, 1.0), "brown": (2.0, 2.0), "random": (0.0, 2.0)}

# Cycles per sample below which coloured noise has no power: 20 Hz at 16 kHz. Most of brown noise would lie below, where
# nothing is heard and the mel bins do not reach, and its signal-to-noise ratio would mean nothing.
_LOWEST = 20 / 16000


def colored_noise(like: Tensor, exponent: Tensor) -> Tensor:
    """Gaussian noise (B, S) whose power falls as ``1 / f^exponent`` (B,), with a mean square of 1 in every clip."""
    samples = like.shape[1]
    spectrum = torch.fft.rfft(torch.randn_like(like))
    frequency = torch.fft.rfftfreq(samples, device=like.device, dtype=like.dtype)
    shape = frequency.clamp_min(_LOWEST) ** (-exponent[:, None] / 2) * (frequency >= _LOWEST)
    noise = torch.fft.irfft(spectrum * shape, n=samples)
    return noise / noise.square().mean(dim=1, keepdim=True).sqrt()
