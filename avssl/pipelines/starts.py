"""What fine-tuning starts from: a classifier of the modalities that the config names, with a new head."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import mast
from avssl.checkpoint import read_checkpoint
from avssl.config import AudioConfig, FinetuneConfig
from avssl.config.parts import REGULARIZATION
from avssl.data.clips import Modality
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.visual_classifier import (
    AudioVisualClassifier,
    VideoClassifier,
    VisualClassifier,
    build_visual_classifier,
)
from avssl.pipelines.encoders import (
    AudioEncoder,
    audio_settings,
    complete_audio,
    complete_video,
    frame_size_for,
    frontend_options,
    is_pair,
    load_audio_encoder,
    load_pair,
    random_encoder,
    with_settings,
)
from avssl.pipelines.trained import trained_with

Finetuning = TypeVar("Finetuning", bound=FinetuneConfig)
MODALITIES: dict[str, tuple[Modality, ...]] = {"audio": ("audio",), "video": ("video",), "both": ("audio", "video")}


def check_start(config: FinetuneConfig, checkpoint: Path | None) -> None:
    """Refuses settings that do not go together, before anything is read.

    Raises:
        ValueError: naming them.
    """
    if config.modality != "both" and config.fusion != "late":
        raise ValueError(f"fusion: {config.fusion} needs modality both, not {config.modality}")
    if config.fusion == "bottleneck" and config.head == "linear":
        raise ValueError("fusion: bottleneck has layers to train; use head full, or fusion late")
    if checkpoint is None:
        return
    kept = {key: value for key, value in config.audio.options.items() if key in REGULARIZATION}
    if config.modality == "video" and config.audio != AudioConfig(options=kept):
        raise ValueError("audio: modality video has no audio encoder; give no audio settings beside the checkpoint")
    if config.modality != "audio":
        if config.video.pretrained:
            raise ValueError("video.pretrained: the weights are the checkpoint's; leave it out")
        if checkpoint.exists() and not is_pair(checkpoint):
            raise ValueError(
                f"checkpoint: {checkpoint} has no video encoder, which modality {config.modality} needs; give a "
                "pretraining run or its .ckpt file, or --checkpoint none"
            )


def complete_start(config: Finetuning, checkpoint: Path | None) -> Finetuning:
    """``config`` with the sizes of the encoders that it trains, as the run's ``config.yaml`` keeps them: those of the
    checkpoint, or without one what the encoders' names stand for. What is given must be true of the checkpoint's.

    Raises:
        FileNotFoundError: when there is nothing at ``checkpoint``.
        ValueError: when a setting is not the checkpoint's, or no encoder can be built with it; the message names it.
    """
    if config.modality != "video":
        if checkpoint is None:
            config = replace(config, audio=complete_audio(config.audio))
        else:
            source = load_audio_encoder(checkpoint)
            with_settings(source, config.audio)
            config = replace(config, audio=audio_settings(source, config.audio))
    if config.modality == "audio":
        return config
    if checkpoint is not None:
        config = _seen_by(config, checkpoint)
    video, data = complete_video(config.video, config.data)
    return replace(config, video=video, data=data)


def _seen_by(config: Finetuning, checkpoint: Path) -> Finetuning:
    """``config`` with the video encoder of a pair's checkpoint and the frames that it takes."""
    file = checkpoint if checkpoint.suffix == ".ckpt" else checkpoint / "checkpoints" / "last.ckpt"
    pair = read_checkpoint(file)["settings"]["pair"]
    own = {"model": pair["video"], "crop_size": int(pair["crop_size"])}
    number = int(pair["num_frames"])
    told = {f"video.{key}": (value, getattr(config.video, key)) for key, value in own.items()}
    for key, (value, given) in (told | {"data.num_frames": (number, config.data.num_frames)}).items():
        if given not in (None, value):
            raise ValueError(
                f"{key}: the checkpoint's video encoder has {value!r}, not {given!r}; beside a checkpoint leave it "
                "out, or give its own"
            )
    size = config.data.frame_size or trained_with(checkpoint).frame_size or frame_size_for(own["crop_size"])
    return replace(
        config, video=replace(config.video, **own), data=replace(config.data, num_frames=number, frame_size=size)
    )


def start_classifier(config: FinetuneConfig, checkpoint: Path | None, labels: dict[str, list[str]]) -> Classifier:
    """The classifier that ``config`` trains, with the encoders of ``checkpoint`` or, without one, new ones.

    Raises:
        FileNotFoundError: when there is nothing at ``checkpoint``.
        ValueError: when its encoders do not fit the data.
    """
    if config.modality == "audio":
        if checkpoint:
            source = with_settings(load_audio_encoder(checkpoint), config.audio)
        else:
            source = random_encoder(config.audio)
        return AudioClassifier(source.encoder, source.frontend, labels)
    both = config.modality == "both"
    bottleneck = asdict(config.bottleneck) if config.fusion == "bottleneck" else None
    if checkpoint is None:
        config = complete_start(config, None)
        assert config.video.model is not None
        assert config.video.crop_size is not None and config.data.num_frames is not None
        return build_visual_classifier(
            labels=labels,
            video=config.video.model,
            num_frames=config.data.num_frames,
            crop_size=config.video.crop_size,
            audio=config.audio.model if both else None,
            audio_options=config.audio.options,
            frontend=frontend_options(config.audio),
            fusion=config.fusion,
            bottleneck=bottleneck,
            pretrained=config.video.pretrained,
        )
    pair = load_pair(checkpoint)
    sizes = {"num_frames": int(pair.settings["num_frames"]), "crop_size": int(pair.settings["crop_size"])}
    if not both:
        return VideoClassifier(pair.video, labels, **sizes)
    audio = with_settings(AudioEncoder(pair.audio, pair.frontend, {}), config.audio).encoder
    return AudioVisualClassifier(
        audio, pair.frontend, pair.video, labels, **sizes, fusion=config.fusion, bottleneck=bottleneck
    )


def random_twin(classifier: Classifier) -> Classifier:
    """A classifier of the same architecture with random weights."""
    if isinstance(classifier, VisualClassifier):
        return build_visual_classifier(**classifier.settings)
    assert isinstance(classifier, AudioClassifier)
    encoder = mast.create_model(classifier.encoder.name, **classifier.encoder.config)
    return AudioClassifier(encoder, classifier.frontend, classifier.labels)
