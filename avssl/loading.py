"""Trained models on disk: what runs write, and :func:`load`, the one way to read it.

A run leaves checkpoints of its training (``checkpoints/*.ckpt``), and, when it is finished, its model: an audio encoder
or a classifier of audio as a ``mast`` folder (``audio_encoder``), which needs no avssl; a classifier that sees as
``classifier/model.ckpt``. Each names its architecture, so that nothing else is needed to build it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import mast
from avssl.checkpoint import fitting, read_checkpoint
from avssl.data.batch import Batch
from avssl.data.clips import Modality
from avssl.files import atomic_path
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.pair import AudioVisualPair, center_crop
from avssl.models.visual_classifier import VisualClassifier, build_visual_classifier
from avssl.plugins import import_wanted
from avssl.saved_runs import (
    CLASSIFIER,
    CLASSIFIER_FILE,
    EXPORT,
    TrainingSettings,
    find_model,
    not_finished,
    run_folder,
    settings_of,
)
from mast import registry
from mast.frontend import all_samples
from mast.hub import read_config

logger = logging.getLogger(__name__)

Kind = Literal["pair", "encoder", "classifier"]

# What a checkpoint may be of, as its settings say it.
_PAIR, _VISUAL, _AUDIO = "pair", "visual classifier", "classifier"
# An audio encoder that mast does not know may be of a plug-in.
registry.more_models.append(import_wanted)

# Where there is no sound, the rate matters to nothing.
SAMPLE_RATE = 16000
# No sound in [-1, 1] gets here, however it was amplified; samples that are integers do.
LOUDEST = 100.0


@dataclass(frozen=True, eq=False)
class Loaded:
    """A trained model with what belongs to it, in ``eval()``.

    Attributes:
        kind: "pair" (audio and video encoder of a pretraining), "encoder" (of audio alone) or "classifier".
        model: The pair, the ``mast`` model or the classifier.
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T), as in its training; None without audio.
        labels: Ordered class names of each head; empty unless it is a classifier.
        settings: What it was trained with.
        path: Where it was read; None of one that was not.
    """

    kind: Kind
    model: AudioVisualPair | Classifier | mast.SpectrogramModel
    frontend: mast.LogMel | None
    labels: dict[str, list[str]] = field(default_factory=dict)
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    path: Path | None = None

    @property
    def name(self) -> str:
        """Name of the run that it is of."""
        return "" if self.path is None else run_folder(self.path).resolve().name

    @property
    def pair(self) -> AudioVisualPair | None:
        """The pair; None of another kind."""
        return self.model if isinstance(self.model, AudioVisualPair) else None

    @property
    def classifier(self) -> Classifier | None:
        """The classifier; None of another kind."""
        return self.model if isinstance(self.model, Classifier) else None

    @property
    def audio_encoder(self) -> mast.SpectrogramModel | None:
        """The audio encoder; None of a classifier of video alone."""
        if isinstance(self.model, AudioVisualPair):
            return self.model.audio
        return self.model.audio_encoder if isinstance(self.model, Classifier) else self.model

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What :meth:`features` takes: of a pair its audio."""
        return self.model.modalities if isinstance(self.model, Classifier) else ("audio",)

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that it takes, in Hz."""
        return SAMPLE_RATE if self.frontend is None else self.frontend.sample_rate

    @property
    def pad(self) -> str | None:
        """What stands behind the sound of a short clip, see ``mast.LogMel``; None without audio."""
        return None if self.frontend is None else self.frontend.pad

    @property
    def frames(self) -> tuple[int, int] | None:
        """Number and side in pixels of the frames that its video encoder takes; None without one."""
        if self.pair is not None:
            return int(self.pair.settings["num_frames"]), int(self.pair.settings["crop_size"])
        seeing = self.classifier
        if seeing is None or seeing.num_frames is None or seeing.crop_size is None:
            return None
        return seeing.num_frames, seeing.crop_size

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "Loaded":
        """Itself, moved to ``device``."""
        self.model.to(device)
        if self.frontend is not None:
            self.frontend.to(device)
        return self

    def audio_alone(self) -> "Loaded":
        """The audio encoder by itself, with its frontend: the same weights, not a copy.

        Raises:
            ValueError: it has none.
        """
        if self.audio_encoder is None or self.frontend is None:
            raise ValueError(
                f"checkpoint: {self.path} has no audio encoder; give a run that hears, or its pretraining run"
            )
        return Loaded("encoder", self.audio_encoder, self.frontend, {}, self.settings, self.path)

    @torch.no_grad()
    def features(self, batch: Batch | Tensor) -> Tensor:
        """What a linear head sees of a batch: (B, D), on the model's device.

        Args:
            batch: Of ``modalities``: waveforms at ``sample_rate``, frames as decoded. Of a model that takes audio alone
                also waveforms (B, S) by themselves, mono, in [-1, 1].

        Raises:
            ValueError: the batch lacks a modality, its frames are too few, too many, too small or no uint8, or its
                waveforms are no floats, or far beyond [-1, 1].
            TypeError: neither waveforms nor a batch.
        """
        batch = self._batch(batch)
        if isinstance(self.model, Classifier):
            return self.model.features(batch)
        if batch.audio is None:
            raise ValueError("the model needs audio, which the batch does not have")
        assert self.audio_encoder is not None and self.frontend is not None
        valid = None if batch.samples is None else self.frontend.valid_frames(batch.samples, batch.audio.shape[1])
        return self.audio_encoder.features(self.frontend(batch.audio, batch.samples), valid)

    @torch.no_grad()
    def scores(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Scores (B, classes) of each head, 0 to 1, in the order of ``labels``; ``batch`` as of :meth:`features`.

        Raises:
            ValueError: it is no classifier; or see :meth:`features`.
        """
        if self.classifier is None:
            raise ValueError(f"{self.path or 'the model'} has no classes: fine-tune it first (avssl finetune)")
        return self.probabilities(self.classifier.split(self.classifier.outputs(self.features(batch))))

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of ``logits`` (..., classes) by head: softmax, or, of a head with several labels at once, sigmoid."""
        several = self.settings.multilabel
        return {
            head: values.float().sigmoid() if head in several else values.float().softmax(-1)
            for head, values in logits.items()
        }

    @torch.no_grad()
    def embeddings(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """All that the model makes of a batch with any of its modalities, (B, D) by name.

        Of a pair ``audio_embedding`` and ``video_embedding`` for retrieval beside ``audio_features`` and
        ``video_features``; of an encoder ``audio_features``; of a classifier those of its encoders, and of one of both
        modalities also ``fused_features``, which its head sees.
        """
        batch, out = self._batch(batch), {}
        if (pair := self.pair) is not None:
            if batch.audio is not None:
                by_time = pair.encode_audio(pair.frontend(batch.audio, batch.samples))
                out["audio_embedding"] = pair.project_audio(by_time, pair.retrieval)
                out["audio_features"] = by_time.mean(dim=2)
            if batch.video is not None:
                seen = pair.video(center_crop(batch.video, int(pair.settings["crop_size"])))
                out |= {"video_embedding": pair.project_video(seen, pair.retrieval), "video_features": seen}
            return out
        if self.classifier is None:
            return {"audio_features": self.features(batch)}
        encoded = self.classifier.encode_batch(batch)
        found = {"audio_features": encoded.audio, "video_features": encoded.video}
        if len(self.modalities) > 1:
            found["fused_features"] = encoded.features
        return {name: values for name, values in found.items() if values is not None}

    def _batch(self, batch: Batch | Tensor) -> Batch:
        """``batch`` on the model's device, with all samples told to be sound where it does not tell."""
        if not isinstance(batch, Batch | Tensor):
            raise TypeError(f"give waveforms (B, S), or an avssl.data.batch.Batch, not a {type(batch).__name__}")
        if isinstance(batch, Tensor):
            if batch.ndim != 2:
                raise ValueError(f"waveforms must be (B, S), got {tuple(batch.shape)}")
            if batch.numel() and not (peak := float(batch.abs().amax())) <= LOUDEST:
                raise ValueError(f"waveforms must be in [-1, 1], got {peak:g}: samples of 16 bits are divided by 32768")
            none = torch.zeros(len(batch))
            batch = Batch(batch, None, {}, none.long(), [""] * len(batch), none.double())
        if batch.audio is not None and batch.samples is None:
            batch = replace(batch, samples=all_samples(batch.audio))
        return batch.to(self.device)

    def reinitialized(self, seed: int) -> "Loaded":
        """The same architecture with random weights that follow from ``seed``, on the same device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = with_random_weights(self.model)
        return replace(self, model=model.eval()).to(self.device)


def load(path: str | Path, device: torch.device | str = "cpu", *, kind: Kind | None = None) -> Loaded:
    """Reads a trained model, once.

    Args:
        path: A run folder of ``pretrain`` or ``finetune``; a ``.ckpt`` file; an exported folder (``audio_encoder`` or
            ``classifier`` of a run, what ``mast.save_pretrained`` wrote); or the folder of an AST of Hugging Face.
            Of a run's folder it is the model that the run evaluated (``log.use``); of weights with an average along the
            training (``optim.ema``) that average.
        device: Where to put it.
        kind: What it has to be.

    Returns:
        The model in ``eval()``, with its frontend, class names and training settings::

            loaded = avssl.load("runs/finetune-esc50-full-pretrained")
            scores = loaded.scores(waveform)["sound"]  # (B, S) at loaded.sample_rate -> (B, classes)

    Raises:
        FileNotFoundError: there is nothing of the kind at ``path``, or its run is not finished.
        ValueError: it is damaged, of another kind, or its parts do not fit each other; the message names what.
    """
    path = Path(path)
    found = find_model(path)
    loaded = _from_folder(path, found) if found.is_dir() else _from_checkpoint(path, found)
    if kind not in (None, loaded.kind):
        hint = ": it has no classes; fine-tune it first (avssl finetune)" if kind == "classifier" else ""
        raise ValueError(f"checkpoint: {path} holds {_article(loaded.kind)}, not {_article(str(kind))}{hint}")
    loaded.model.eval()
    return loaded.to(device)


def with_random_weights(model: AudioVisualPair | Classifier | mast.SpectrogramModel) -> Any:
    """A model of the same architecture and classes, with weights of torch's generator."""
    if isinstance(model, AudioVisualPair):
        made: Any = AudioVisualPair.build(**model.settings)
    elif isinstance(model, VisualClassifier):
        made = build_visual_classifier(**model.settings)
    elif isinstance(model, AudioClassifier):
        encoder = mast.create_model(model.encoder.name, **model.encoder.config)
        return AudioClassifier(encoder, model.frontend, model.labels)
    else:
        assert isinstance(model, mast.SpectrogramModel)
        return mast.create_model(model.name, **model.config)
    made.video.mean.copy_(model.video.mean)
    made.video.std.copy_(model.video.std)
    return made


def checkpoint_settings(classifier: Classifier, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint of the training of ``classifier`` needs beside the weights, with ``extra`` plain values."""
    if isinstance(classifier, VisualClassifier):
        return {"kind": _VISUAL, "classifier": classifier.settings, "extra": extra or {}}
    assert isinstance(classifier, AudioClassifier)
    encoder = classifier.encoder
    return {
        "kind": _AUDIO,
        "model": encoder.name,
        "options": encoder.config,
        "frontend": classifier.frontend.config,
        "labels": classifier.labels,
        "extra": extra or {},
    }


def save_classifier(run: Path, classifier: Classifier, extra: dict[str, Any] | None = None) -> Path:
    """Writes a trained classifier into the folder of its run, whole or not at all.

    Args:
        run: The folder, which is made where it is missing.
        classifier: The model.
        extra: Plain values to keep beside it: ``multilabel``, ``clip_seconds``, ``channel`` and ``frame_size`` come
            back as :class:`TrainingSettings`.

    Returns:
        The folder that it lies in.
    """
    if isinstance(classifier, AudioClassifier):
        return save_encoder(run, classifier.encoder, classifier.frontend, classifier.labels, extra)
    weights = {name: tensor.detach().cpu() for name, tensor in classifier.state_dict().items()}
    with atomic_path(run / CLASSIFIER / CLASSIFIER_FILE) as temporary:
        torch.save({"settings": checkpoint_settings(classifier, extra), "weights": weights}, temporary)
    logger.info("saved the classifier to %s", run / CLASSIFIER)
    return run / CLASSIFIER


def save_encoder(
    run: Path,
    encoder: mast.SpectrogramModel,
    frontend: mast.LogMel,
    labels: dict[str, list[str]] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Writes an audio encoder into the folder of its run, where :func:`load` and ``mast.from_pretrained`` find it.

    Returns:
        The folder that it lies in.
    """
    with torch.no_grad():
        mast.save_pretrained(encoder, run / EXPORT, frontend=frontend, labels=labels, extra=extra)
    logger.info("exported the audio encoder to %s", run / EXPORT)
    return run / EXPORT


def _from_checkpoint(path: Path, file: Path) -> Loaded:
    state = read_checkpoint(file)
    settings = state["settings"]
    kind = settings.get("kind")
    trained = settings_of(path, settings.get("config") or {}, settings.get("extra") or {})
    if kind == _PAIR:
        with fitting(file):
            pair = AudioVisualPair.build(**settings["pair"])
            pair.load_state_dict(_weights(state, "pair."), strict=True)
        if path.is_dir() and not (path / EXPORT).is_dir():
            logger.warning("the run %s is not finished: taking the weights of %s", path, file)
        return Loaded("pair", pair, pair.frontend, {}, trained, path)
    if kind not in (_VISUAL, _AUDIO):
        raise ValueError(f"checkpoint: {file} holds {_article(str(kind))}, neither a pair nor a classifier")
    if "weights" not in state and path.is_dir():
        raise not_finished(path)
    classifier: Classifier
    with fitting(file):
        if kind == _VISUAL:
            classifier = build_visual_classifier(**settings["classifier"])
        else:
            encoder = mast.create_model(settings["model"], **settings["options"])
            classifier = AudioClassifier(encoder, mast.LogMel(**settings["frontend"]), settings["labels"])
        classifier.load_state_dict(_weights(state, "classifier."), strict=True)
    return Loaded("classifier", classifier, classifier.frontend, classifier.labels, trained, path)


def _weights(state: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """Those of the model: their average along the training where there is one."""
    if "weights" in state:
        return state["weights"]
    prefix, weights = ("module.", state["average"]) if state["average"] else (prefix, state["task"])
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _from_folder(path: Path, folder: Path) -> Loaded:
    trained = settings_of(path, {}, read_config(folder).get("extra") or {})  # first, as it names the run's plug-ins
    found = mast.from_pretrained(folder)
    if found.frontend is None:
        raise ValueError(f"checkpoint: {folder} was exported without its frontend; its spectrograms cannot be remade")
    outputs = found.model.num_classes
    if not found.labels or not outputs:
        if outputs:
            logger.info("%s: its %d classes have no names: the encoder is used without its head", folder, outputs)
            found.model.reset_classifier(0)
        return Loaded("encoder", found.model, found.frontend, {}, trained, path)
    named = sum(len(names) for names in found.labels.values())
    if named != outputs:
        raise ValueError(f"checkpoint: {folder} names {named} classes, its model has {outputs}")
    classifier = AudioClassifier(found.model, found.frontend, found.labels)
    return Loaded("classifier", classifier, found.frontend, found.labels, trained, path)


def _article(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"
