"""Mixup of a clip with one from anywhere in the training set, before the spectrogram: AST's and CAV-MAE's.

Gong et al. 2021 (AST) and 2023 (CAV-MAE), ``dataloader.py`` of both: with a given probability a clip is blended with
one drawn uniformly from the whole training set, with a share from Beta(10, 10), on waveforms without their means; so
are the labels and, in CAV-MAE, the frames.
"""

from dataclasses import dataclass

import numpy as np

from avssl.augment.settings import MixupConfig
from avssl.bounds import bounds_of


@dataclass(frozen=True)
class SetMixup:
    """How clips are blended with others of the set.

    Args:
        probability: That a clip is blended.
        alpha: Both parameters of the Beta distribution of the clip's own share.

    Raises:
        SettingsError: a number out of its bounds.
    """

    probability: float = 0.5
    alpha: float = 10.0

    def __post_init__(self) -> None:
        for name, bound in bounds_of(MixupConfig).items():
            bound.check(f"augment.mixup.{name}", getattr(self, name))

    @classmethod
    def of(cls, settings: MixupConfig) -> "SetMixup | None":
        """The mixup of clips while they are read; None where ``settings`` ask for none or for another kind."""
        return cls(*settings.numbers()) if settings.kind == "waveform" else None

    def share(self, rng: np.random.Generator) -> float | None:
        """The clip's own share of its blend, 0 to 1; None where it is not blended."""
        return float(rng.beta(self.alpha, self.alpha)) if rng.random() < self.probability else None


def mix_waveforms(own: np.ndarray, samples: int, other: np.ndarray, other_samples: int, share: float) -> np.ndarray:
    """The blend (S,) float32 of two clips (S,), which lasts as long as the first: the other is cut, or ends sooner.

    Args:
        own, other: Waveforms, of which the first ``samples`` and ``other_samples`` are sound; zeros follow.
        share: Of ``own``, 0 to 1.
    """
    mixed, last = np.zeros_like(own), min(samples, other_samples)
    if not samples:
        return mixed
    mixed[:samples] = share * (own[:samples] - own[:samples].mean())
    if last:  # the mean is that of the whole other clip, also where it is cut
        mixed[:last] += (1 - share) * (other[:last] - other[:other_samples].mean())
    mixed[:samples] -= mixed[:samples].mean()
    return mixed


def mix_frames(own: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """The blend (T, H, W, 3) uint8 of two clips' frames."""
    mixed = share * own.astype(np.float32) + (1 - share) * other.astype(np.float32)
    return mixed.round().astype(np.uint8)
