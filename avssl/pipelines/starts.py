"""What training starts from: a pair to pretrain, or a classifier of the modalities that the config names."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import mast
from avssl.checkpoint import read_head
from avssl.config import AudioConfig, FinetuneConfig, PretrainConfig
from avssl.config.parts import REGULARIZATION
from avssl.data.clips import Modality
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.pair import AudioVisualPair
from avssl.models.projection import Projection
from avssl.models.video import video_options
from avssl.models.visual_classifier import (
    AudioVisualClassifier,
    VideoClassifier,
    VisualClassifier,
    build_visual_classifier,
)
from avssl.objectives.terms import own_projections, read_terms, retrieval_projection, trained_projections
from avssl.pipelines.classifiers import has_classifier, load_classifier
from avssl.pipelines.encoders import (
    AudioEncoder,
    audio_settings,
    complete_audio,
    complete_pair,
    complete_video,
    frame_size_for,
    frontend_options,
    is_pair,
    load_audio_encoder,
    load_pair,
    random_encoder,
    used_checkpoint,
    with_settings,
)
from avssl.pipelines.trained import trained_with

logger = logging.getLogger(__name__)

Finetuning = TypeVar("Finetuning", bound=FinetuneConfig)
Training = TypeVar("Training", bound=FinetuneConfig | PretrainConfig)
MODALITIES: dict[str, tuple[Modality, ...]] = {"audio": ("audio",), "video": ("video",), "both": ("audio", "video")}


# Share of an encoder's weights that a checkpoint has to hold.
MATCHED = 0.9


@dataclass(frozen=True)
class StartedPair:
    """A pair to pretrain.

    Attributes:
        pair: The model.
        checkpoint: Where weights came from; None where all are new.
        told: For result.json: the checkpoint, and of each part whether it is new or the share of its weights that came
            from there.
    """

    pair: AudioVisualPair
    checkpoint: Path | None
    told: dict[str, Any]


def complete_pretraining(config: PretrainConfig) -> PretrainConfig:
    """``config`` with the sizes of the encoders that it trains, as the run's ``config.yaml`` keeps them: those of its
    checkpoint, as far as that has them, else what their names stand for.

    Raises:
        FileNotFoundError: when there is nothing at the checkpoint.
        ValueError: when a setting is not the checkpoint's, or no encoder can be built with it; the message names it.
    """
    if config.audio.options.get("pool", "patch") != "patch":
        raise ValueError("audio.options: pretraining trains AST's patch tokens, so that pool is patch; leave it out")
    if (checkpoint := _start_of(config)) is not None:
        config = _heard_by(config, _audio_of(checkpoint))
        if is_pair(checkpoint):
            if config.video.pretrained:
                raise ValueError("video.pretrained: the weights are the checkpoint's; leave it out")
            config = _seen_by(config, checkpoint)
    return complete_pair(config)


def start_pair(config: PretrainConfig) -> StartedPair:
    """The pair that ``config`` pretrains, with what its checkpoint holds: of a pair both encoders and, where they are
    of the same sizes, the projections, else an audio encoder alone.

    Raises:
        FileNotFoundError, ValueError: see :func:`complete_pretraining`; or too little of the checkpoint fits.
    """
    config = complete_pretraining(config)
    assert config.audio.model and config.video.model and config.video.crop_size and config.data.num_frames
    terms = read_terms(config.objectives, config.embedding_dim)
    retrieval = retrieval_projection(terms, config.retrieval)
    if retrieval not in trained_projections(terms):
        logger.warning(
            "retrieval: no objective trains both heads of its projection, %s: it stays near chance", retrieval
        )
    projections = own_projections(terms) or {retrieval: Projection(dim=config.embedding_dim)}
    checkpoint = _start_of(config)
    heard = None if checkpoint is None else with_settings(_audio_of(checkpoint), config.audio)
    pair = AudioVisualPair.build(
        audio=config.audio.model,
        audio_options=config.audio.options,
        frontend_options=frontend_options(config.audio) if heard is None else heard.frontend.config,
        video=config.video.model,
        video_options=config.video.options,
        num_frames=config.data.num_frames,
        crop_size=config.video.crop_size,
        pretrained=config.video.pretrained,
        embedding_dim=config.embedding_dim,
        time_bins=config.time_bins,
        projections={name: asdict(each) for name, each in projections.items()},
        retrieval=retrieval,
    )
    if checkpoint is None or heard is None:
        return StartedPair(pair, None, {"checkpoint": None})
    source = load_pair(checkpoint) if is_pair(checkpoint) else None
    audio = heard.encoder if source is None else source.audio
    audio.reset_classifier(0)
    told: dict[str, Any] = {"checkpoint": str(checkpoint), "audio": _take(pair.audio, audio, "audio encoder")}
    told["video"] = "new" if source is None else _take(pair.video, source.video, "video encoder")
    for name, heads in pair.projections.items():
        # Retrieval's stands for that of the source, whatever objective they have their names of.
        theirs = None
        if source is not None and (name in source.projections or name == pair.retrieval):
            theirs = source.projections[name if name in source.projections else source.retrieval]
        fits = theirs is not None and _shapes(heads) == _shapes(theirs)
        told[f"{name}_projection"] = (
            _take(heads, theirs, f"projection {name}") if theirs is not None and fits else "new"
        )
    parts = [f"{name} {share if share == 'new' else f'{share:.0%}'}" for name, share in list(told.items())[1:]]
    logger.info("starting from the weights of %s: %s", checkpoint, ", ".join(parts))
    return StartedPair(pair, checkpoint, told)


def _start_of(config: PretrainConfig) -> Path | None:
    return None if config.checkpoint in (None, "none") else Path(str(config.checkpoint))


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _take(module: nn.Module, source: nn.Module, name: str) -> float:
    """Copies the weights of ``source`` that fit into ``module``; returns their share of all of ``module``'s.

    Raises:
        ValueError: it is below :data:`MATCHED`.
    """
    own, theirs = module.state_dict(), source.state_dict()
    fitting = {key: value for key, value in theirs.items() if key in own and own[key].shape == value.shape}
    share = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
    if share < MATCHED:
        missing = next(key for key in own if key not in fitting)
        raise ValueError(
            f"checkpoint: only {share:.0%} of the {name}'s weights are in it, the first that is missing is {missing}; "
            "give the settings that it was trained with, or none"
        )
    module.load_state_dict(fitting, strict=False)
    return share


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
    if config.modality == "video" and config.audio != AudioConfig(options=kept, pad=config.audio.pad):
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
            config = _heard_by(config, _audio_of(checkpoint))
    if config.modality == "audio":
        return config
    if checkpoint is not None:
        config = _seen_by(config, checkpoint)
    video, data = complete_video(config.video, config.data)
    return replace(config, video=video, data=data)


def _audio_of(checkpoint: Path) -> AudioEncoder:
    """The audio encoder of any checkpoint, a classifier's without its classes."""
    if is_pair(checkpoint) or not has_classifier(checkpoint):
        return load_audio_encoder(checkpoint)
    classifier = load_classifier(checkpoint)
    if classifier.audio_encoder is None or classifier.frontend is None:
        raise ValueError(
            f"checkpoint: {checkpoint} has no audio encoder; give a run that hears, or its pretraining run"
        )
    return AudioEncoder(classifier.audio_encoder, classifier.frontend, classifier.labels)


def _heard_by(config: Training, source: AudioEncoder) -> Training:
    """``config`` with the audio encoder of a checkpoint."""
    return replace(config, audio=audio_settings(with_settings(source, config.audio), config.audio))


def _seen_by(config: Training, checkpoint: Path) -> Training:
    """``config`` with the video encoder of a pair's checkpoint and the frames that it takes."""
    pair = read_head(used_checkpoint(checkpoint))["settings"]["pair"]
    own = {"model": pair["video"], "crop_size": int(pair["crop_size"])}
    number = int(pair["num_frames"])
    options = dict(pair.get("video_options") or {})
    known = video_options(own["model"], options)
    told: dict[str, tuple[Any, Any]] = {
        f"video.{key}": (value, getattr(config.video, key)) for key, value in own.items()
    }
    for key, given in config.video.options.items():
        told[f"video.options.{key}"] = (known.get(key), given)
    for key, (value, given) in (told | {"data.num_frames": (number, config.data.num_frames)}).items():
        if given not in (None, value):
            raise ValueError(
                f"{key}: the checkpoint's video encoder has {value!r}, not {given!r}; beside a checkpoint leave it "
                "out, or give its own"
            )
    size = config.data.frame_size or trained_with(checkpoint).frame_size or frame_size_for(own["crop_size"])
    return replace(
        config,
        video=replace(config.video, **own, options=options),
        data=replace(config.data, num_frames=number, frame_size=size),
    )


def start_classifier(config: FinetuneConfig, checkpoint: Path | None, labels: dict[str, list[str]]) -> Classifier:
    """The classifier that ``config`` trains, with the encoders of ``checkpoint`` or, without one, new ones.

    Raises:
        FileNotFoundError: when there is nothing at ``checkpoint``.
        ValueError: when its encoders do not fit the data.
    """
    if config.modality == "audio":
        source = with_settings(_audio_of(checkpoint), config.audio) if checkpoint else random_encoder(config.audio)
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
            video_options=config.video.options,
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
    heard = with_settings(AudioEncoder(pair.audio, pair.frontend, {}), config.audio)
    return AudioVisualClassifier(
        heard.encoder, heard.frontend, pair.video, labels, **sizes, fusion=config.fusion, bottleneck=bottleneck
    )


def random_twin(classifier: Classifier) -> Classifier:
    """A classifier of the same architecture with random weights."""
    if isinstance(classifier, VisualClassifier):
        twin = build_visual_classifier(**classifier.settings)
        twin.video.mean.copy_(classifier.video.mean)
        twin.video.std.copy_(classifier.video.std)
        return twin
    assert isinstance(classifier, AudioClassifier)
    encoder = mast.create_model(classifier.encoder.name, **classifier.encoder.config)
    return AudioClassifier(encoder, classifier.frontend, classifier.labels)
