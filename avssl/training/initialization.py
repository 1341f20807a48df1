"""What training starts from: the sizes of its encoders, and their weights, random or a checkpoint's."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import mast
from avssl.config import AudioConfig, AugmentSheetConfig, DataConfig, FinetuneConfig, PretrainConfig, VideoConfig
from avssl.data.clips import Modality
from avssl.loading import SAMPLE_RATE, Loaded, load, with_random_weights
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.pair import AudioVisualPair
from avssl.models.projection import Projection
from avssl.models.settings import REGULARIZATION
from avssl.models.video import own_size, video_options
from avssl.models.visual_classifier import AudioVisualClassifier, VideoClassifier, build_visual_classifier
from avssl.objectives.terms import own_projections, read_terms, retrieval_projection, trained_projections
from avssl.saved_runs import EXPORT, not_finished

logger = logging.getLogger(__name__)

PairConfig = TypeVar("PairConfig", PretrainConfig, AugmentSheetConfig)
Finetuning = TypeVar("Finetuning", bound=FinetuneConfig)
Training = TypeVar("Training", bound=FinetuneConfig | PretrainConfig)

MODALITIES: dict[str, tuple[Modality, ...]] = {"audio": ("audio",), "video": ("video",), "both": ("audio", "video")}
# The models that are built where none is named.
AUDIO_MODEL, VIDEO_MODEL = "mast_pico", "tiny"
# Settings of the frontend that a config may have; the others are the frontend's own, or a checkpoint's.
FRONTEND = ("sample_rate", "num_mels", "mean", "std", "divide_by", "frame_shift_ms", "fixed_frames", "pad")
# Those that may be others than in the training of a checkpoint.
REFITTED = ("fixed_frames", "pad")
# Of the frontend, where neither the settings nor the model say any.
NUM_MELS = 128


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


def random_encoder(config: AudioConfig) -> Loaded:
    """The audio encoder of ``config`` with random weights."""
    config = complete_audio(config)
    frontend = mast.LogMel(**frontend_options(config))
    assert config.model is not None
    return Loaded("encoder", mast.create_model(config.model, num_classes=0, **config.options), frontend)


def read_start(checkpoint: str | Path | None) -> Loaded | None:
    """The model that a training's ``checkpoint`` names; None where it names none.

    Raises:
        FileNotFoundError: there is nothing there, or its run is not finished, whose weights are still to change.
        ValueError: it is damaged, or not of this version.
    """
    if checkpoint in (None, "none"):
        return None
    path = Path(str(checkpoint))
    loaded = load(path)
    if loaded.pair is not None and path.is_dir() and not (path / EXPORT).is_dir():
        raise not_finished(path)
    return loaded


def with_settings(source: Loaded, config: AudioConfig) -> Loaded:
    """A checkpoint's audio encoder under the audio settings that are given beside it.

    Regularization, padding and the frames of a clip are changed to what they say; everything else they say must be true
    of the encoder already.

    Raises:
        ValueError: it is not; the message names the first such setting.
    """
    if config == AudioConfig():  # nothing was given
        return source
    encoder, frontend = _parts(source)
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
        changes = ", ".join(f"audio.{key} {value} in place of {frontend[key]}" for key, value in refitted.items())
        logger.info("otherwise than the checkpoint was trained: %s", changes)
        source = replace(source, frontend=mast.LogMel(**frontend | refitted))
    changed = {key: value for key, value in config.options.items() if key in REGULARIZATION}
    if not changed:
        return source
    try:
        other = mast.create_model(encoder.name, **encoder.config | changed)
    except TypeError as error:
        raise ValueError(f"audio.options: {error}") from error
    other.load_state_dict(encoder.state_dict())
    return replace(source, model=other)


def audio_settings(source: Loaded, given: AudioConfig) -> AudioConfig:
    """The settings that rebuild ``source``, with the regularization of ``given``."""
    encoder, frontend = _parts(source)
    with torch.device("meta"):
        plain = mast.create_model(encoder.name).config
    options = {key: value for key, value in encoder.config.items() if key != "num_classes" and value != plain[key]}
    options |= {key: value for key, value in given.options.items() if key in REGULARIZATION}
    return AudioConfig(encoder.name, options, **{key: frontend[key] for key in FRONTEND})


def _parts(source: Loaded) -> tuple[mast.SpectrogramModel, dict[str, Any]]:
    """An encoder and the settings of its frontend."""
    alone = source.audio_alone()
    assert alone.audio_encoder is not None and alone.frontend is not None
    return alone.audio_encoder, alone.frontend.config


@dataclass(frozen=True)
class InitialPair:
    """A pair to pretrain.

    Attributes:
        pair: The model.
        checkpoint: Where weights came from; None where all are new.
        report: For result.json: the checkpoint, and of each part whether it is new or the share of its weights that
            came from there.
    """

    pair: AudioVisualPair
    checkpoint: Path | None
    report: dict[str, Any]


def complete_pretraining(config: PretrainConfig, source: Loaded | None) -> PretrainConfig:
    """``config`` with the sizes of the encoders that it trains, as the run's ``config.yaml`` keeps them: those of its
    checkpoint ``source``, as far as that has them, else what their names stand for.

    Raises:
        ValueError: when a setting is not the checkpoint's, or no encoder can be built with it; the message names it.
    """
    if config.audio.options.get("pool", "patch") != "patch":
        raise ValueError("audio.options: pretraining trains AST's patch tokens, so that pool is patch; leave it out")
    if source is not None:
        config = _with_audio_of(config, source)
        if source.pair is not None:
            if config.video.pretrained:
                raise ValueError("video.pretrained: the weights are the checkpoint's; leave it out")
            config = _with_video_of(config, source)
    return complete_pair(config)


def initial_pair(config: PretrainConfig, source: Loaded | None = None) -> InitialPair:
    """The pair that ``config`` pretrains, with what its checkpoint holds: of a pair both encoders and, where they are
    of the same sizes, the projections, else an audio encoder alone.

    Args:
        config: Settings.
        source: Its checkpoint, see :func:`read_start`.

    Raises:
        ValueError: see :func:`complete_pretraining`; or too little of the checkpoint fits.
    """
    config = complete_pretraining(config, source)
    assert config.audio.model and config.video.model and config.video.crop_size and config.data.num_frames
    terms = read_terms(config.objectives, config.embedding_dim)
    retrieval = retrieval_projection(terms, config.retrieval)
    if retrieval not in trained_projections(terms):
        logger.warning(
            "retrieval: no objective trains both heads of its projection, %s: it stays near chance", retrieval
        )
    projections = own_projections(terms) or {retrieval: Projection(dim=config.embedding_dim)}
    audio = None if source is None else with_settings(source.audio_alone(), config.audio)
    pair = AudioVisualPair.build(
        audio=config.audio.model,
        audio_options=config.audio.options,
        frontend_options=frontend_options(config.audio) if audio is None else _parts(audio)[1],
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
    if source is None or audio is None:
        return InitialPair(pair, None, {"checkpoint": None})
    theirs = source.pair
    report: dict[str, Any] = {"checkpoint": str(source.path), "audio": _copy(audio.model, pair.audio, "audio encoder")}
    report["video"] = "new" if theirs is None else _copy(theirs.video, pair.video, "video encoder")
    for name, heads in pair.projections.items():
        # Retrieval's stands for that of the source, whatever objective they have their names of.
        own = None
        if theirs is not None and (name in theirs.projections or name == pair.retrieval):
            own = theirs.projections[name if name in theirs.projections else theirs.retrieval]
        fits = own is not None and _shapes(heads) == _shapes(own)
        report[f"{name}_projection"] = _copy(own, heads, f"projection {name}") if own is not None and fits else "new"
    parts = [f"{name} {share if share == 'new' else f'{share:.0%}'}" for name, share in list(report.items())[1:]]
    logger.info("starting from the weights of %s: %s", source.path, ", ".join(parts))
    return InitialPair(pair, source.path, report)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _copy(source: nn.Module, module: nn.Module, name: str) -> float:
    """Copies the weights of ``source``, but for the head of an encoder; returns the share of ``module``'s: all.

    Raises:
        ValueError: they are not just those of ``module``.
    """
    own, theirs = module.state_dict(), source.state_dict()
    weights = {key: value for key, value in theirs.items() if key in own or not key.startswith("head.")}
    other = [key for key in own.keys() | weights.keys() if _shape(own.get(key)) != _shape(weights.get(key))]
    if other:
        raise ValueError(
            f"checkpoint: {len(other)} of the {len(own)} weights of the {name} are not in it, or of other sizes, the "
            f"first is {min(other)}; give the settings that it was trained with, or none"
        )
    module.load_state_dict(weights, strict=True)
    return 1.0


def _shape(value: torch.Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def read_finetuning_start(config: FinetuneConfig, checkpoint: Path | None) -> Loaded | None:
    """The model at ``checkpoint``, see :func:`read_start`, for the modalities that ``config`` trains.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_start`; or settings do not go together, which is found before
            anything is read where that is possible.
    """
    if config.modality != "both" and config.fusion != "late":
        raise ValueError(f"fusion: {config.fusion} needs modality both, not {config.modality}")
    if config.fusion == "bottleneck" and config.head == "linear":
        raise ValueError("fusion: bottleneck has layers to train; use head full, or fusion late")
    if checkpoint is None:
        if config.compare_random:
            raise ValueError("compare_random: the start is random weights already; give --checkpoint PATH")
        return None
    kept = {key: value for key, value in config.audio.options.items() if key in REGULARIZATION}
    if config.modality == "video" and config.audio != AudioConfig(options=kept, pad=config.audio.pad):
        raise ValueError("audio: modality video has no audio encoder; give no audio settings beside the checkpoint")
    if config.modality != "audio" and config.video.pretrained:
        raise ValueError("video.pretrained: the weights are the checkpoint's; leave it out")
    source = read_start(checkpoint)
    if config.modality != "audio" and source is not None and source.pair is None:
        raise ValueError(
            f"checkpoint: {checkpoint} has no video encoder, which modality {config.modality} needs; give a "
            "pretraining run or its .ckpt file, or --checkpoint none"
        )
    return source


def check_random_start(config: FinetuneConfig, source: Loaded | None) -> None:
    """Whether random weights under the settings of ``config``, which is complete, are given the same spectrograms as
    the checkpoint ``source``.

    Raises:
        ValueError: they are not: its frontend has what audio settings cannot say. The message names it.
    """
    if source is None or config.modality == "video":
        return
    own = _parts(with_settings(source.audio_alone(), config.audio))[1]
    other = mast.LogMel(**frontend_options(config.audio)).config
    differing = [f"{key} {value}, not {other[key]}" for key, value in own.items() if value != other[key]]
    if differing:
        raise ValueError(
            f"compare_random: the checkpoint's frontend has {', '.join(differing)}, which settings of a random start "
            "cannot say: the two would be given other spectrograms; leave compare_random out"
        )


def complete_finetuning(config: Finetuning, source: Loaded | None) -> Finetuning:
    """``config`` with the sizes of the encoders that it trains, as the run's ``config.yaml`` keeps them: those of the
    checkpoint ``source``, or without one what the encoders' names stand for. What is given must be true of the
    checkpoint's.

    Raises:
        ValueError: when a setting is not the checkpoint's, or no encoder can be built with it; the message names it.
    """
    if config.modality != "video":
        if source is None:
            config = replace(config, audio=complete_audio(config.audio))
        else:
            config = _with_audio_of(config, source)
    if config.modality == "audio":
        return config
    if source is not None:
        config = _with_video_of(config, source)
    video, data = complete_video(config.video, config.data)
    return replace(config, video=video, data=data)


def _with_audio_of(config: Training, source: Loaded) -> Training:
    """``config`` with the audio encoder of a checkpoint."""
    return replace(config, audio=audio_settings(with_settings(source.audio_alone(), config.audio), config.audio))


def _with_video_of(config: Training, source: Loaded) -> Training:
    """``config`` with the video encoder of a pair's checkpoint and the frames that it takes."""
    assert source.pair is not None
    pair = source.pair.settings
    own = {"model": pair["video"], "crop_size": int(pair["crop_size"])}
    number = int(pair["num_frames"])
    options = dict(pair.get("video_options") or {})
    known = video_options(own["model"], options)
    compared: dict[str, tuple[Any, Any]] = {
        f"video.{key}": (value, getattr(config.video, key)) for key, value in own.items()
    }
    for key, given in config.video.options.items():
        compared[f"video.options.{key}"] = (known.get(key), given)
    for key, (value, given) in (compared | {"data.num_frames": (number, config.data.num_frames)}).items():
        if given not in (None, value):
            raise ValueError(
                f"{key}: the checkpoint's video encoder has {value!r}, not {given!r}; beside a checkpoint leave it "
                "out, or give its own"
            )
    size = config.data.frame_size or source.settings.frame_size or frame_size_for(own["crop_size"])
    return replace(
        config,
        video=replace(config.video, **own, options=options),
        data=replace(config.data, num_frames=number, frame_size=size),
    )


def initial_classifier(config: FinetuneConfig, source: Loaded | None, labels: dict[str, list[str]]) -> Classifier:
    """The classifier that ``config`` trains, with copies of the encoders of ``source`` or, without one, new ones.

    The head of a checkpoint is kept where its classes are these, in this order; otherwise it is new.

    Raises:
        ValueError: when its encoders do not fit the data.
    """
    both = config.modality == "both"
    bottleneck = asdict(config.bottleneck) if config.fusion == "bottleneck" else None
    if source is None and config.modality == "audio":
        new = random_encoder(config.audio)
        assert new.audio_encoder is not None and new.frontend is not None
        return AudioClassifier(new.audio_encoder, new.frontend, labels)
    if source is None:
        config = complete_finetuning(config, None)
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
    # Built again now: what is drawn next, the head, then follows from the seed alone, not from when it was loaded.
    if config.modality == "audio":
        audio = with_settings(_copied(source.audio_alone()), config.audio)
        assert audio.audio_encoder is not None and audio.frontend is not None
        if not keeps_head(config, source, labels):
            audio.audio_encoder.reset_classifier(0)
        return AudioClassifier(audio.audio_encoder, audio.frontend, labels)
    copy = _copied(source)
    assert copy.pair is not None and copy.frames is not None
    sizes = {"num_frames": copy.frames[0], "crop_size": copy.frames[1]}
    if not both:
        return VideoClassifier(copy.pair.video, labels, **sizes)
    audio = with_settings(copy.audio_alone(), config.audio)
    assert audio.audio_encoder is not None and audio.frontend is not None
    return AudioVisualClassifier(
        audio.audio_encoder,
        audio.frontend,
        copy.pair.video,
        labels,
        **sizes,
        fusion=config.fusion,
        bottleneck=bottleneck,
    )


def keeps_head(config: FinetuneConfig, source: Loaded, labels: dict[str, list[str]]) -> bool:
    """Whether :func:`initial_classifier` goes on with the head of ``source``."""
    return config.modality == "audio" and list(source.labels.items()) == list(labels.items())


def _copied(source: Loaded) -> Loaded:
    model = with_random_weights(source.model)
    model.load_state_dict(source.model.state_dict())
    return replace(source, model=model)
