"""Augmentation as settings name it."""

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import (
    AugmentConfig,
)
from avssl.data.mixup import SetMixup


def wave_augment(config: AugmentConfig) -> WaveAugment:
    """Waveform augmentation of ``config``."""
    return WaveAugment(
        config.gain_db, config.time_shift, config.noise_db, config.noise_color, config.mix, config.mix_db
    )


def set_mixup(config: AugmentConfig) -> SetMixup | None:
    """Mixup of clips while they are read; None where ``config`` asks for none or for another kind."""
    return SetMixup(*config.mixup.numbers()) if config.mixup.kind == "waveform" else None


def batch_mixup(config: AugmentConfig) -> tuple[float, float]:
    """Alpha and probability of mixup within the batch; alpha 0 where ``config`` asks for none or for another kind."""
    probability, alpha = config.mixup.numbers()
    return (alpha, probability) if config.mixup.kind == "batch" else (0.0, 1.0)


def spectrogram_augment(config: AugmentConfig) -> SpectrogramAugment:
    """Spectrogram augmentation of ``config``."""
    return SpectrogramAugment(
        config.spec_warp, config.time_mask, config.freq_mask, config.masks, config.patch_drop, config.patch_size
    )


def video_augment(config: AugmentConfig, crop_size: int) -> VideoAugment:
    """Frame augmentation of ``config``, to squares of ``crop_size`` pixels."""
    return VideoAugment(
        crop_size,
        config.crop_scale,
        config.flip,
        config.color,
        config.gray,
        config.crop_ratio,
        config.hue,
        config.blur,
        config.blur_sigma,
    )
