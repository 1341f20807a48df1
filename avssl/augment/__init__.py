"""Batched augmentation on the device: every clip of a batch draws its own parameters, which its frames share.

Whatever is off draws nothing and changes nothing; in evaluation all of it is off.
"""

from avssl.augment.mixing import mix_background, mixup
from avssl.augment.noise import NOISE_COLORS, colored_noise
from avssl.augment.patches import drop_patches, random_units, stretch_units
from avssl.augment.spectrogram import SpectrogramAugment
from avssl.augment.video import VideoAugment
from avssl.augment.wave import WaveAugment

__all__ = [
    "NOISE_COLORS",
    "SpectrogramAugment",
    "VideoAugment",
    "WaveAugment",
    "colored_noise",
    "drop_patches",
    "mix_background",
    "mixup",
    "random_units",
    "stretch_units",
]
