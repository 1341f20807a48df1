"""Audio encoders and pairs: their sizes, and what ``--checkpoint`` names: a run, an export, a .ckpt file, or none."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import mast
from avssl.checkpoint import BEST, LAST, fitting, read_checkpoint, read_head, run_settings
from avssl.config import AudioConfig, AugmentSheetConfig, DataConfig, PretrainConfig, VideoConfig
from avssl.config.parts import REGULARIZATION
from avssl.data.batch import Batch
from avssl.models.pair import AudioVisualPair
from avssl.models.video import own_size, video_options

PairConfig = TypeVar("PairConfig", PretrainConfig, AugmentSheetConfig)
logger = logging.getLogger(__name__)

EXPORT = "audio_encoder"
# The models that are built where none is named.
AUDIO_MODEL, VIDEO_MODEL = "mast_pico", "tiny"
# Settings of the frontend that a config may have; the others are the frontend's own, or a checkpoint's.
FRONTEND = ("sample_rate", "num_mels", "mean", "std", "divide_by", "frame_shift_ms", "fixed_frames", "pad")
# Those that may be others than in the training of a checkpoint.
REFITTED = ("fixed_frames", "pad")
# Of the frontend, where neither the settings nor the model say any.
SAMPLE_RATE, NUM_MELS = 16000, 128


@dataclass
class AudioEncoder:
    """An audio encoder with the frontend that it was trained with, and the class names of its head."""

    encoder: mast.SpectrogramModel
    frontend: mast.LogMel
    labels: dict[str, list[str]]

    def features(self, batch: Batch) -> Tensor:
        """Features (B, D), before any head, of a batch on the encoder's device."""
        assert batch.audio is not None
        valid = None if batch.samples is None else self.frontend.valid_frames(batch.samples, batch.audio.shape[1])
        return self.encoder.features(self.frontend(batch.audio, batch.samples), valid)


def complete_audio(config: AudioConfig) -> AudioConfig:
    """``config`` with the model's own sizes where it has none.

    Raises:
        ValueError: an unknown model, or options that it has not or refuses; the message names the setting.
    """
    name = AUDIO_MODEL if config.model is None else config.model
    if "num_classes" in config.options:
        raise ValueError("audio.options: num_classes is set by the data's heads; leave it out")
    if (config.mean is None) != (config.std is None):
        raise ValueError(f"audio.mean and audio.std: give both or neither, got {config.mean} and {config.std}")
    try:
        with torch.device("meta"):
            model = mast.create_model(name, num_classes=0, **config.options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        known = mast.registry.is_registered(name)
        setting = f"audio.options: {name} cannot be built with {config.options}" if known else "audio.model"
        raise ValueError(f"{setting}: {error}") from error
    rate = SAMPLE_RATE if config.sample_rate is None else config.sample_rate
    mels = int(model.config.get("mels", NUM_MELS)) if config.num_mels is None else config.num_mels
    return replace(config, model=name, sample_rate=rate, num_mels=mels, pad=config.pad or "wave")


def complete_video(video: VideoConfig, data: DataConfig) -> tuple[VideoConfig, DataConfig]:
    """``video`` and ``data`` with the encoder's own size and number of frames where they have none.

    Raises:
        ValueError: an unknown encoder, or frames that are smaller than its crop.
    """
    name = VIDEO_MODEL if video.model is None else video.model
    frames, side = own_size(name)
    video_options(name, video.options)
    crop = side if video.crop_size is None else video.crop_size
    number = frames if data.num_frames is None else data.num_frames
    size = frame_size_for(crop) if data.frame_size is None else data.frame_size
    if size < crop:
        raise ValueError(
            f"data.frame_size: frames of {size} x {size} are smaller than the crop of {crop} x {crop} that {name} "
            f"sees: give --data.frame_size {frame_size_for(crop)}, or a smaller --video.crop_size"
        )
    return replace(video, model=name, crop_size=crop), replace(data, num_frames=number, frame_size=size)


def frame_size_for(crop: int) -> int:
    """Side of the frames to decode for a crop: 8/7 of it, up to a multiple of 8 (256 for 224)."""
    return -(-crop // 7) * 8


def complete_pair(config: PairConfig) -> PairConfig:
    """``config`` with the encoders' own sizes where it has none, as the run's ``config.yaml`` keeps them."""
    video, data = complete_video(config.video, config.data)
    return replace(config, audio=complete_audio(config.audio), video=video, data=data)


def frontend_options(config: AudioConfig) -> dict[str, Any]:
    """Keyword arguments of the frontend."""
    config = complete_audio(config)
    return {key: value for key in FRONTEND if (value := getattr(config, key)) is not None}


def random_encoder(config: AudioConfig) -> AudioEncoder:
    """The encoder of ``config`` with random weights."""
    config = complete_audio(config)
    frontend = mast.LogMel(**frontend_options(config))
    assert config.model is not None
    return AudioEncoder(mast.create_model(config.model, num_classes=0, **config.options), frontend, {})


def load_audio_encoder(path: Path) -> AudioEncoder:
    """The audio encoder of ``path``.

    Args:
        path: A run folder, an exported encoder, or a .ckpt file of a pretraining run.

    Raises:
        FileNotFoundError: when there is nothing at ``path``, or its run is not finished.
        ValueError: when it holds another kind of model.
    """
    if path.suffix == ".ckpt":
        pair = load_pair(path)
        return AudioEncoder(pair.audio, pair.frontend, {})
    folder = path / EXPORT if (path / EXPORT).is_dir() else path
    if not (folder / "config.json").is_file():
        if (path / "checkpoints").is_dir():
            raise FileNotFoundError(
                f"checkpoint: the run {path} is not finished; resume it, or name {path / 'checkpoints' / 'last.ckpt'}"
            )
        raise FileNotFoundError(
            f"checkpoint: {path} is neither a run folder, nor an exported encoder, nor a .ckpt file"
        )
    loaded = mast.from_pretrained(folder)
    if loaded.frontend is None:
        raise ValueError(f"checkpoint: {folder} was exported without its frontend; its spectrograms cannot be remade")
    return AudioEncoder(loaded.model, loaded.frontend, loaded.labels or {})


def with_settings(source: AudioEncoder, config: AudioConfig) -> AudioEncoder:
    """A checkpoint's encoder under the audio settings that are given beside it.

    Regularization, padding and the frames of a clip are changed to what they say; everything else they say must be true
    of the encoder already.

    Raises:
        ValueError: it is not; the message names the first such setting.
    """
    if config == AudioConfig():  # nothing was given
        return source
    encoder, frontend = source.encoder, source.frontend.config
    pairs: dict[str, tuple[Any, Any]] = {"model": (encoder.name, config.model)}
    pairs |= {key: (frontend[key], getattr(config, key)) for key in FRONTEND if key not in REFITTED}
    pairs |= {f"options.{key}": (encoder.config.get(key), value) for key, value in config.options.items()}
    for key, (own, given) in pairs.items():
        if given is not None and own != given and key.removeprefix("options.") not in REGULARIZATION:
            raise ValueError(
                f"audio.{key}: the checkpoint's encoder has {own!r}, not {given!r}; beside a checkpoint leave audio "
                "settings out, or give its own"
            )
    refitted = {key: value for key in REFITTED if (value := getattr(config, key)) not in (None, frontend[key])}
    if refitted:
        told = ", ".join(f"audio.{key} {value} in place of {frontend[key]}" for key, value in refitted.items())
        logger.info("otherwise than the checkpoint was trained: %s", told)
        source = replace(source, frontend=mast.LogMel(**frontend | refitted))
    changed = {key: value for key, value in config.options.items() if key in REGULARIZATION}
    if not changed:
        return source
    try:
        twin = mast.create_model(encoder.name, **encoder.config | changed)
    except TypeError as error:
        raise ValueError(f"audio.options: {error}") from error
    twin.load_state_dict(encoder.state_dict())
    return replace(source, encoder=twin)


def load_pair(path: Path) -> AudioVisualPair:
    """The audio-visual pair of a pretraining run's folder or .ckpt file.

    Raises:
        FileNotFoundError: when there is no such checkpoint.
        ValueError: when it is no checkpoint of a pair.
    """
    file = used_checkpoint(path)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint: there is no {file}")
    state = read_checkpoint(file)
    if state["settings"].get("kind") != "pair":
        raise ValueError(f"checkpoint: {file} holds a {state['settings'].get('kind')}, not an audio-visual pair")
    with fitting(file):
        pair = AudioVisualPair.build(**state["settings"]["pair"])
        prefix, weights = ("module.", state["average"]) if state["average"] else ("pair.", state["task"])
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        pair.load_state_dict(weights, strict=True)
    return pair


def used_checkpoint(path: Path) -> Path:
    """The .ckpt file that ``path`` means: itself, or, of a run's folder, the one that ``log.use`` evaluates."""
    if path.suffix == ".ckpt":
        return path
    best = path / "checkpoints" / BEST
    if best.is_file():
        log = run_settings(path).get("log") or {}
        if log.get("use") == "best":  # runs of before that setting evaluated the last weights
            return best
    return path / "checkpoints" / LAST


def is_pair(path: Path) -> bool:
    """Whether ``path`` is a pretraining run or its .ckpt, which has a video encoder too."""
    file = used_checkpoint(path)
    return file.is_file() and read_head(file)["settings"].get("kind") == "pair"


def export_audio_encoder(
    folder: Path,
    encoder: mast.SpectrogramModel,
    frontend: mast.LogMel,
    labels: dict[str, list[str]],
    extra: dict[str, Any],
) -> None:
    """Writes the encoder, frontend and labels where ``load_audio_encoder`` and ``mast.from_pretrained`` find them."""
    with torch.no_grad():
        mast.save_pretrained(encoder, folder, frontend=frontend, labels=labels, extra=extra)
    logger.info("exported the audio encoder to %s", folder)


def audio_settings(source: AudioEncoder, given: AudioConfig) -> AudioConfig:
    """The settings that rebuild ``source``, with the regularization of ``given``."""
    encoder, frontend = source.encoder, source.frontend.config
    with torch.device("meta"):
        plain = mast.create_model(encoder.name).config
    options = {key: value for key, value in encoder.config.items() if key != "num_classes" and value != plain[key]}
    options |= {key: value for key, value in given.options.items() if key in REGULARIZATION}
    return AudioConfig(encoder.name, options, **{key: frontend[key] for key in FRONTEND})
