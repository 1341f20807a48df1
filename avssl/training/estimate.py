"""How long a run would take on a CPU: an estimate, told before it starts, so that nobody waits for a GPU's recipe."""

import logging
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

import mast
from avssl.config import FinetuneConfig, PretrainConfig
from avssl.models.video import create_video_encoder
from avssl.training.initialization import frontend_options

logger = logging.getLogger(__name__)

# Share of the speed of large matrix products that the encoders reach, and a step in units of its forward pass.
_EFFICIENCY, _STEP = 0.5, 3.0
# Told are runs of more than an hour; clips of more multiply-accumulates than small.yaml's are for GPUs.
_LONG, _LARGE = 3600.0, 5e9
# So few clips take any encoder less than that; they are not worth the second that the count takes.
_FEW = 500


def tell_long_run(config: PretrainConfig | FinetuneConfig, clips: int, seconds: float) -> float:
    """Warns of training that would take longer than an hour on this CPU.

    Args:
        config: A complete config of a run on a CPU.
        clips: Clips that training sees, all epochs together, on this process.
        seconds: Length of a clip.

    Returns:
        The estimate in seconds; 0 for a few clips.
    """
    if clips < _FEW:
        return 0.0
    macs = macs_of_clip(config, seconds)
    estimate = clips * _STEP * macs / (_EFFICIENCY * macs_per_second())
    if estimate > _LONG:
        large = macs > _LARGE and isinstance(config, PretrainConfig)
        logger.warning(
            "no GPU is used: on this CPU training takes about %s (an estimate, of %.1f G multiply-accumulates a clip "
            "and %d clips over all epochs); %s",
            _told(estimate), macs / 1e9, clips,
            "these settings are for GPUs, --config small is for a CPU" if large else "a GPU, a smaller audio.model or "
            "video.model, fewer optim.epochs or a data.train_fraction take less",
        )  # fmt: skip
    return estimate


def macs_of_clip(config: PretrainConfig | FinetuneConfig, seconds: float) -> float:
    """Multiply-accumulates of the forward pass of a clip of ``seconds`` through the encoders that ``config`` trains."""
    modality = config.modality if isinstance(config, FinetuneConfig) else "both"
    audio, video = config.audio, config.video
    frontend = mast.LogMel(**frontend_options(audio))
    frames = max(1, frontend.num_frames(round(seconds * frontend.sample_rate)))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if modality != "video":
            assert audio.model is not None
            encoder = mast.create_model(audio.model, **audio.options).eval()
            encoder.forward_features(torch.empty(1, 1, frontend.num_mels, frames))
        if modality != "audio":
            assert video.model is not None and video.crop_size is not None and config.data.num_frames is not None
            number, side = config.data.num_frames, video.crop_size
            seen = create_video_encoder(video.model, num_frames=number, frame_size=side, **video.options).eval()
            seen(torch.empty(1, 3, number, side, side))
    return counter.get_total_flops() / 2


def macs_per_second(repeats: int = 5) -> float:
    """Multiply-accumulates a second of this CPU, measured on products of 768 x 768 matrices in float32."""
    left = torch.ones(768, 768)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - began)
    return 768**3 / min(times)  # the others were interrupted


def _told(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
