"""Batched augmentation on the device: every clip of a batch draws its own parameters, which its frames share.

Whatever is off draws nothing and changes nothing; in evaluation all of it is off.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avssl.augment.audio import (
        NOISE_COLORS,
        SpectrogramAugment,
        WaveAugment,
        colored_noise,
        drop_patches,
        random_units,
        stretch_units,
    )
    from avssl.augment.mixing import mix_background, mixup
    from avssl.augment.video import VideoAugment

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
_MODULES = ("audio", "mixing", "video")


def __getattr__(name: str) -> Any:
    """What the modules have, imported at first use: the settings are read without torch."""
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
