"""What augmentation can be told, declared once: the command line reads it without torch.

Each class is the ``Config`` of a module of this package, which takes its fields as keyword arguments.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from avssl.bounds import COUNT, SHARE, Bound, bounded


@bounded(
    crop_scale=Bound(0.01, 1),
    crop_ratio=Bound(1, 10),
    flip=SHARE,
    color=SHARE,
    hue=Bound(0, 0.5),
    gray=SHARE,
    blur=SHARE,
    blur_sigma=Bound(0.01, 50, ascending=True),
)
@dataclass
class FrameSettings:
    """Crop, flip, colour and blur of frames, which those of a clip share.

    Args:
        crop_scale: Smallest area of a frame that a random resized crop keeps, 0 to 1.
        crop_ratio: Largest ratio of a crop's sides, either way; 4/3 is usual, 1 keeps the frame's shape.
        flip: Probability of a horizontal flip.
        color: Strength of brightness, contrast and saturation jitter, 0 to 1.
        hue: Largest turn of the hue, as a share of the whole circle, 0 to 0.5.
        gray: Probability that a clip loses its colour, 0 to 1.
        blur: Probability of a Gaussian blur, 0 to 1.
        blur_sigma: Smallest and largest standard deviation of the blur, in pixels of the crop.
    """

    crop_scale: float = 0.8
    crop_ratio: float = 1.0
    flip: float = 0.5
    color: float = 0.1
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)


@bounded(
    gain_db=Bound(0, 60), time_shift=SHARE, mix=SHARE, mix_db=Bound(-60, 100, ascending=True), noise_db=Bound(-60, 100)
)
@dataclass
class WaveSettings:
    """Time shift, background, noise and gain of waveforms.

    Args:
        gain_db: Largest gain or attenuation of the waveform, in dB.
        time_shift: Largest circular shift of the waveform, as a share of the clip.
        mix: Probability that another clip of the batch is heard in the background, 0 to 1; labels stay.
        mix_db: Smallest and largest ratio of the clip's power to the background's, in dB.
        noise_db: Lowest signal-to-noise ratio of added noise, in dB, drawn up to 40 dB above it; none adds no noise.
        noise_color: Colour of the noise: white, pink (-3 dB an octave), brown (-6 dB), or random: any slope from white
            to brown.
    """

    gain_db: float = 3.0
    time_shift: float = 0.0
    mix: float = 0.0
    mix_db: tuple[float, float] = (5.0, 20.0)
    noise_db: float | None = None
    noise_color: Literal["white", "pink", "brown", "random"] = "white"


@bounded(spec_warp=SHARE, time_mask=SHARE, freq_mask=SHARE, masks=Bound(0, 100), patch_drop=SHARE, patch_size=COUNT)
@dataclass
class SpectrogramSettings:
    """Time stretch, mel shift, masks and patch-drop of log-mels.

    Args:
        spec_warp: Strength of random time stretch and mel shift of the spectrogram, 0 to 1.
        time_mask: Widest time mask (SpecAugment), as a share of the frames.
        freq_mask: Widest frequency mask (SpecAugment), as a share of the mel bins.
        masks: Number of masks of each kind.
        patch_drop: Share of the patches of the spectrogram that are blanked (SS-MAST's patch-drop), 0 to 1.
        patch_size: Mel bins and frames of such a patch.
    """

    spec_warp: float = 0.0
    time_mask: float = 0.0
    freq_mask: float = 0.0
    masks: int = 1
    patch_drop: float = 0.0
    patch_size: tuple[int, int] = (16, 16)


@bounded(probability=SHARE, alpha=Bound(0, 1000, above=True))
@dataclass
class MixupConfig:
    """Mixup: clips blended with others, and their labels with theirs (fine-tuning only).

    Args:
        kind: none; waveform is AST's and CAV-MAE's: some clips are blended, as waveforms without their means and as
            frames, with one drawn from the whole training set; batch blends log-mels and frames within the batch
            (Zhang et al. 2018), and each clip keeps at least half of itself.
        probability: That a clip is blended; default: 0.5 of waveform, 1 of batch.
        alpha: Both parameters of the Beta distribution of a clip's own share; default: 10 of waveform, 0.3 of batch.
    """

    kind: Literal["none", "waveform", "batch"] = "none"
    probability: float | None = None
    alpha: float | None = None

    def numbers(self) -> tuple[float, float]:
        """Probability and alpha, as set or the kind's own."""
        probability, alpha = (1.0, 0.3) if self.kind == "batch" else (0.5, 10.0)
        return (
            probability if self.probability is None else self.probability,
            alpha if self.alpha is None else self.alpha,
        )

    def within_batch(self) -> tuple[float, float]:
        """Alpha and probability of mixup within the batch; alpha is 0 without, and for the other kind."""
        probability, alpha = self.numbers()
        return (alpha, probability) if self.kind == "batch" else (0.0, 1.0)


def former_mixup(value: Any) -> str:
    """What to write in the place of a number, which ``augment.mixup`` was."""
    if value in (None, 0, False):
        return "augment.mixup: has a kind by now; mixup that is off is {kind: none}, or left out"
    return (
        f"augment.mixup: the number {value} was Beta's alpha of mixing within the batch, which now is "
        f"{{kind: batch, alpha: {value}}}; AST's and CAV-MAE's mixup with probability {value} is "
        f"{{kind: waveform, probability: {value}}}"
    )


@dataclass
class AugmentConfig(SpectrogramSettings, WaveSettings, FrameSettings):
    """Batched augmentation on the device, drawn anew for every clip; the frames of a clip share its draws.

    The defaults are mild: they suit short runs, where strong augmentation costs more than it brings. What is at 0 (at 1
    for crop_ratio, none for noise_db) is off and draws nothing. ``avssl augment`` shows what settings do to clips.

    Args:
        mixup: Blends of clips and of their labels (fine-tuning only).
    """

    mixup: MixupConfig = field(default_factory=MixupConfig)

    def __post_init__(self) -> None:
        if isinstance(self.mixup, int | float):
            raise ValueError(former_mixup(self.mixup))
