"""Augmentation of waveforms: time shift, another clip in the background, noise, gain."""

import torch
from torch import Tensor, nn

from avssl.augment.draws import check, check_range, uniform
from avssl.augment.mixing import level, mix_background
from avssl.augment.noise import NOISE_COLORS, colored_noise


class WaveAugment(nn.Module):
    """Random circular time shift, background, noise and gain of waveforms, in this order; nothing in evaluation.

    Args:
        gain_db: Largest gain or attenuation in dB.
        time_shift: Largest circular shift, as a share of the clip.
        noise_db: Lowest signal-to-noise ratio in dB, drawn up to 40 dB above it; None adds no noise.
        noise_color: white, pink (-3 dB an octave), brown (-6 dB an octave), or random: a slope between for each clip.
        mix: Probability that another clip of the batch is heard in the background; labels stay.
        mix_db: Smallest and largest ratio in dB of the clip's power to the background's.
    """

    def __init__(
        self,
        gain_db: float = 6.0,
        time_shift: float = 0.0,
        noise_db: float | None = None,
        noise_color: str = "white",
        mix: float = 0.0,
        mix_db: tuple[float, float] = (5.0, 20.0),
    ) -> None:
        super().__init__()
        check("gain_db", gain_db, 0, 60)
        check("time_shift", time_shift, 0, 1)
        if noise_db is not None:
            check("noise_db", noise_db, -60, 100)
        if noise_color not in NOISE_COLORS:
            raise ValueError(f"augment.noise_color: must be one of {', '.join(NOISE_COLORS)}, got {noise_color!r}")
        check("mix", mix, 0, 1)
        check_range("mix_db", mix_db, -60, 100)
        self.gain_db, self.time_shift, self.noise_db = gain_db, time_shift, noise_db
        self.noise_color, self.mix, self.mix_db = noise_color, mix, mix_db

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """``waveform`` (B, S) -> (B, S).

        Args:
            waveform: (B, S).
            samples: (B,) where the sound ends and padding begins: the shift is within the sound, and noise and
                background are relative to its level. None: the whole clip is sound.
        """
        if not self.training:
            return waveform
        size = waveform.shape[1]
        length = waveform.new_full((len(waveform),), size, dtype=torch.int64) if samples is None else samples
        if self.time_shift:
            shift = (uniform(waveform, -self.time_shift, self.time_shift) * length).long()
            index = torch.arange(size, device=waveform.device)
            turned = (index - shift[:, None]) % length.clamp_min(1)[:, None]
            waveform = waveform.gather(1, torch.where(index < length[:, None], turned, index))
        if self.mix:
            waveform = mix_background(waveform, self.mix, self.mix_db, samples)
        if self.noise_db is not None:
            ratio = uniform(waveform, self.noise_db, self.noise_db + 40)[:, None]
            waveform = waveform + self._noise(waveform) * level(waveform, samples)[:, None] * 10 ** (-ratio / 20)
        gain = uniform(waveform, -self.gain_db, self.gain_db)[:, None]
        return waveform * 10 ** (gain / 20)

    def _noise(self, waveform: Tensor) -> Tensor:
        if self.noise_color == "white":
            return torch.randn_like(waveform)
        return colored_noise(waveform, uniform(waveform, *NOISE_COLORS[self.noise_color]))
