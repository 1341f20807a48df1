"""What encoders and their fusion can be told; the command line reads it without torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from avssl.bounds import ANY, COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_1, bounded

# Options of a model that its weights do not depend on: a recipe's hold for the model of a checkpoint, too.
REGULARIZATION = ("drop_path", "mask_padding")


@bounded(sample_rate=COUNT, num_mels=COUNT, mean=ANY, std=POSITIVE, frame_shift_ms=POSITIVE, fixed_frames=COUNT)
@dataclass
class AudioConfig:
    """The audio encoder and its frontend. What is not given is the checkpoint's where one is given.

    Args:
        model: A name that ``python -m mast`` prints: mast_base ... mast_nano, ast_base; or timm/NAME, a backbone of
            timm, or hf/PATH, a folder of transformers' AST; or one of a plug-in; default: mast_pico.
        options: Keyword arguments of the model, for example {drop_path: 0.1}, over those that its name stands for.
        sample_rate: Rate that audio is resampled to, in Hz; default: 16000.
        num_mels: Mel bins of the log-mel spectrogram; default: the model's own number.
        mean: Mean of the log-mel over the data, subtracted; default: the frontend's own.
        std: Standard deviation of the log-mel over the data; default: the frontend's own.
        divide_by: What the log-mel less its mean is divided by: 2*std, as AST, or std, as CAV-MAE; default: 2*std.
        frame_shift_ms: Time from one frame to the next, in milliseconds; default: 10.
        fixed_frames: Frames that every spectrogram gets, as AST's 1024 for 10 s: filled up with 0 before the
            normalization, or cut; default: the clip's own.
        pad: What stands behind a sound that is shorter than a clip: wave (the spectrum of silence), zero (0 before the
            normalization, as AST and CAV-MAE), edge (its last frame, as Auditory SlowFast), repeat (the sound again);
            default: wave. Beside a checkpoint it may be another than that of its training.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sample_rate: int | None = None
    num_mels: int | None = None
    mean: float | None = None
    std: float | None = None
    divide_by: Literal["2*std", "std"] | None = None
    frame_shift_ms: float | None = None
    fixed_frames: int | None = None
    pad: Literal["wave", "zero", "edge", "repeat"] | None = None


@bounded(crop_size=COUNT)
@dataclass
class VideoConfig:
    """The video encoder. What is not given is the checkpoint's where one is given.

    Args:
        model: tiny, tiny_motion, mvit_v2_s, r2plus1d_18, swin3d_t or s3d, or one of a plug-in; default: tiny.
        options: Keyword arguments of the encoder: mvit_v2_s takes {scaled_positions: true}, which divides the scores of
            its relative positions by sqrt(dim), as MViTv2's equation 4 is printed; default: as its authors' code.
        pretrained: Start from torchvision's Kinetics-400 weights (downloads them on first use).
        crop_size: Side of the square frames that the encoder sees, in pixels; default: the encoder's own size.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    crop_size: int | None = None


@bounded(tokens=COUNT, width=COUNT, depth=COUNT, start=NOT_NEGATIVE, heads=COUNT, dropout=SHARE_BELOW_1)
@dataclass
class BottleneckConfig:
    """Fusion through bottleneck tokens (MBT): transformer layers upon the tokens of both encoders.

    Args:
        tokens: Bottleneck tokens, the only way between the modalities.
        width: Channels of the layers.
        depth: Layers of each modality.
        start: First layer that sees the bottleneck; the ones before it see their own modality only.
        heads: Attention heads.
        dropout: Dropout within the layers.
    """

    tokens: int = 4
    width: int = 256
    depth: int = 3
    start: int = 0
    heads: int = 4
    dropout: float = 0.0
