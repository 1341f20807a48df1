"""What fine-tuning starts from: a classifier of the modalities that the config names, with a new head."""

from dataclasses import asdict
from pathlib import Path

import mast
from avssl.config import AudioConfig, FinetuneConfig, VideoConfig
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
    frontend_options,
    is_pair,
    load_audio_encoder,
    load_pair,
    random_encoder,
    with_settings,
)

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
    if config.modality == "video" and config.audio != AudioConfig():
        raise ValueError("audio: modality video has no audio encoder; give no audio settings beside the checkpoint")
    if config.modality != "audio":
        if config.video != VideoConfig():
            raise ValueError("video: the encoder is the checkpoint's; give no video settings beside it")
        if checkpoint.exists() and not is_pair(checkpoint):
            raise ValueError(
                f"checkpoint: {checkpoint} has no video encoder, which modality {config.modality} needs; give a "
                "pretraining run or its .ckpt file, or --checkpoint none"
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
    if sizes["num_frames"] != config.data.num_frames:
        raise ValueError(
            f"data.num_frames: the checkpoint's video encoder takes {sizes['num_frames']} frames a clip, "
            f"not {config.data.num_frames}"
        )
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
