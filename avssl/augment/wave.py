"""Augmentation of waveforms: time shift, another clip in the background, noise, gain."""

from typing import Any

import torch
from torch import Tensor

from avssl.augment.base import ConfiguredAugment, uniform
from avssl.augment.mixing import level, mix_background
from avssl.augment.settings import WaveSettings

# Power falls as 1 / f^exponent: not at all, by 3 dB and by 6 dB an octave; "random" draws each clip's own from 0 to 2.
NOISE_COLORS = {"white": (0.0, 0.0), "pink": (1.0, 1.0), "brown": (2.0, 2.0), "random": (0.0, 2.0)}

# Cycles per sample below which coloured noise has no power: 20 Hz at 16 kHz. Most of brown noise would lie below, where
# nothing is heard and the mel bins do not reach, and its signal-to-noise ratio would mean nothing.
_LOWEST = 20 / 16000


class WaveAugment(ConfiguredAugment):
    """Random circular time shift, background, noise and gain of waveforms, in this order; nothing in evaluation.

    Args:
        **settings: See :class:`~avssl.augment.settings.WaveSettings`.
    """

    Config = WaveSettings
    config: WaveSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.config.noise_color not in NOISE_COLORS:
            known = ", ".join(NOISE_COLORS)
            raise ValueError(f"augment.noise_color: must be one of {known}, got {self.config.noise_color!r}")

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """``waveform`` (B, S) -> (B, S).

        Args:
            waveform: (B, S).
            samples: (B,) where the sound ends and padding begins: the shift is within the sound, and noise and
                background are relative to its level. None: the whole clip is sound.
        """
        if not self.training:
            return waveform
        config = self.config
        size = waveform.shape[1]
        length = waveform.new_full((len(waveform),), size, dtype=torch.int64) if samples is None else samples
        if config.time_shift:
            shift = (uniform(waveform, -config.time_shift, config.time_shift) * length).long()
            index = torch.arange(size, device=waveform.device)
            turned = (index - shift[:, None]) % length.clamp_min(1)[:, None]
            waveform = waveform.gather(1, torch.where(index < length[:, None], turned, index))
        if config.mix:
            waveform = mix_background(waveform, config.mix, config.mix_db, samples)
        if config.noise_db is not None:
            ratio = uniform(waveform, config.noise_db, config.noise_db + 40)[:, None]
            waveform = waveform + self._noise(waveform) * level(waveform, samples)[:, None] * 10 ** (-ratio / 20)
        gain = uniform(waveform, -config.gain_db, config.gain_db)[:, None]
        return waveform * 10 ** (gain / 20)

    def _noise(self, waveform: Tensor) -> Tensor:
        if self.config.noise_color == "white":
            return torch.randn_like(waveform)
        return colored_noise(waveform, uniform(waveform, *NOISE_COLORS[self.config.noise_color]))


def colored_noise(like: Tensor, exponent: Tensor) -> Tensor:
    """Gaussian noise (B, S) whose power falls as ``1 / f^exponent`` (B,), with a mean square of 1 in every clip."""
    samples = like.shape[1]
    spectrum = torch.fft.rfft(torch.randn_like(like))
    frequency = torch.fft.rfftfreq(samples, device=like.device, dtype=like.dtype)
    shape = frequency.clamp_min(_LOWEST) ** (-exponent[:, None] / 2) * (frequency >= _LOWEST)
    noise = torch.fft.irfft(spectrum * shape, n=samples)
    return noise / noise.square().mean(dim=1, keepdim=True).sqrt()
