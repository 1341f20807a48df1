"""What evaluations share: the model, the clips, and everything about them that more than one of them needs."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avssl.config import EvaluateConfig
from avssl.data.batch import Batch
from avssl.data.boxes import HELP, has_boxes
from avssl.data.loaders import ClipProtocol, Loaders
from avssl.data.manifest import Manifest
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.embeddings import (
    ClipScores,
    EmbeddingCache,
    Embeddings,
    coverage,
    embed_many,
    embed_pair,
    media_digest,
    model_digest,
)
from avssl.evaluation.epic import is_epic
from avssl.evaluation.probe import ProbeResult, linear_probe
from avssl.evaluation.result import FILE as PREDICTIONS
from avssl.evaluation.result import write_predictions
from avssl.loading import Loaded


@dataclass(frozen=True)
class EarlierFeatures:
    """Features of the evaluated rows before the training that is reported, for a picture.

    Attributes:
        features: of the same rows.
        title: what they come from: "Before fine-tuning", "Random weights".
        title_after: what the features after the training come from.
    """

    features: Embeddings
    title: str
    title_after: str


@dataclass
class EvaluationContext:
    """The state that evaluations share; what is asked for twice is computed once.

    Attributes:
        config: of the evaluation.
        model: what is evaluated, in ``eval()``.
        split: rows to evaluate.
        labels: class names of each head to evaluate.
        protocol: length and number of the clips of a row.
        loaders: of the model's modalities.
        folder: of the result.
        autocast: the precision of passes through the model; default: that of its weights.
        training: labelled rows to fit probes on, none of them evaluated; None where the data has none.
        cache: of embeddings; default: none are kept.
        before: features before a training that this evaluation is the end of.
        kmeans_seed: where k-means starts; default: by the seed of the config.
    """

    config: EvaluateConfig
    model: Loaded
    split: Manifest
    labels: dict[str, list[str]]
    protocol: ClipProtocol
    loaders: Loaders
    folder: Path
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    training: Manifest | None = None
    cache: EmbeddingCache = field(default_factory=lambda: EmbeddingCache(None))
    before: EarlierFeatures | None = None
    kmeans_seed: int | None = None
    _probes: dict[str, ProbeResult] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @cached_property
    def digest(self) -> str:
        """Hash of the model's weights and of all settings that change what comes out."""
        return _digest(self.model)

    @property
    def clips(self) -> str:
        """How the features of a row are made, for names of metrics."""
        return self.protocol.words("features")

    @property
    def scored_clips(self) -> str:
        """How a row is scored, for names of metrics."""
        return self.clips if self.model.classifier is None else self.protocol.words()

    @property
    def clip_protocol(self) -> str:
        """Which clips of a row are scored, for result.json: of a checkpoint without classes its features count."""
        return self.protocol.description("features" if self.model.classifier is None else None)

    @cached_property
    def _clip_scores(self) -> ClipScores:
        several = self.split.multilabel
        return ClipScores(self.model.labels, several, self.protocol.eval_clips, self.protocol.average)

    def unmet(self, need: str) -> str:
        """Why ``need`` is not met, for an error; empty where it is.

        Args:
            need: pair or classifier (kind of the model); labels (the split has some); single_label (a head with one
                label a clip among them); training (labelled training rows, other than the evaluated ones); scores
                (classes of the model's own, or training rows for a linear probe); audio (the model takes sound);
                unlabelled (the split has no labels); epic (its heads are EPIC-KITCHENS's); boxes (the data say where
                in the picture that which sounds is).

        Raises:
            ValueError: there is no such need.
        """
        data, split = self.config.data.name, self.config.split
        if need in ("pair", "classifier"):
            return "" if self.model.kind == need else f"the checkpoint is no {need}"
        if need == "boxes":
            return "" if has_boxes(self.split) else f"{data} does not say where what sounds is: {HELP}"
        if need == "epic":
            return "" if is_epic(self.split.heads) else "the data has not the two heads verb and noun"
        if need == "unlabelled":
            return f"split {split!r} has labels" if self.heads else ""
        if need == "audio":
            return "" if "audio" in self.model.modalities else "the checkpoint hears nothing"
        if need == "labels":
            return "" if self.heads else f"split {split!r} has no labelled clip"
        if need == "single_label":
            single = any(self.split.labels(head).ndim == 1 for head in self.heads)
            return "" if single else f"split {split!r} has no head with one label for each clip"
        if need not in ("scores", "training"):
            raise ValueError(f"an evaluation needs {need!r}, which is none of the needs that are known")
        if self.training is not None or (need == "scores" and self.model.classifier is not None):
            return ""
        if split == "train":
            return "the training split would be judged by itself; evaluate another --split"
        return f"data {data} has no labelled split 'train'"

    @cached_property
    def heads(self) -> dict[str, list[str]]:
        """Classes of the heads that have a label in the evaluated split."""
        return {head: names for head, names in self.labels.items() if (self.split.labels(head) >= 0).any()}

    def picture(self, name: str) -> Path:
        """Path of a picture."""
        return self.folder / "pictures" / f"{name}.png"

    @cached_property
    def embedded(self) -> dict[str, Embeddings]:
        """Of the evaluated rows, ``features`` and, of a classifier, ``outputs`` (N, all classes), as
        `ClipScores` averages them."""
        return self._embed(self.model, self.split, "evaluated clips")

    @property
    def features(self) -> Embeddings:
        """Features of the evaluated rows."""
        return self.embedded["features"]

    @cached_property
    def training_features(self) -> Embeddings:
        """Features of the training rows."""
        assert self.training is not None
        return self._embed(self.model, self.training, "training clips")["features"]

    def random_features(self) -> tuple[Embeddings, Embeddings] | None:
        """Features of the training and of the evaluated rows by the same architecture with random weights."""
        if self.training is None or not _hears_alone(self.model):
            return None
        random = self.model.audio_alone().reinitialized(self.config.seed)
        train, test = (
            self._embed(random, rows, f"random weights, {name} clips")["features"]
            for rows, name in ((self.training, "training"), (self.split, "evaluated"))
        )
        return train, test

    @property
    def pair_loaders(self) -> Loaders:
        """Loaders of sound and picture of the same clips."""
        return replace(self.loaders, modalities=("audio", "video"))

    @cached_property
    def joint(self) -> tuple[Embeddings, Embeddings]:
        """Joint audio and video embeddings of the evaluated rows."""
        pair = self.model.pair
        assert pair is not None
        loaders = self.pair_loaders

        def make() -> dict[str, Embeddings]:
            with self.autocast():
                audio, video = embed_pair(pair, loaders, self.split, self.device)
            return {"audio": audio, "video": video}

        frames = [self.config.data.num_frames, self.config.data.frame_size]
        both = self._kept(self.model, self.split, {"what": "joint", "frames": frames}, ("audio", "video"), make)
        return both["audio"], both["video"]

    def probe(self, head: str) -> ProbeResult:
        """The linear probe of a head, fitted on the training rows."""
        if head not in self._probes:
            names = self.labels[head]
            self._probes[head] = linear_probe(
                self.training_features, self.features, head, len(names), seed=self.config.seed
            )
        return self._probes[head]

    @torch.inference_mode()
    def scores(self, averaged: Embeddings | None = None) -> dict[str, FloatArray]:
        """(N, classes) by head: of the classifier, or of linear probes where the checkpoint has no classes.

        Args:
            averaged: What :meth:`to_average` gave, averaged over the clips of each row; default: of the evaluated rows.
        """
        if self.model.classifier is not None:
            return {head: values for head, values in self.all_scores(averaged).items() if head in self.heads}
        if averaged is None:
            return {head: self.probe(head).scores for head in self.heads}
        rows = averaged.features
        return {head: rows @ self.probe(head).weight.T + self.probe(head).bias for head in self.heads}

    def all_scores(self, averaged: Embeddings | None = None) -> dict[str, FloatArray]:
        """Scores of all heads of the classifier, also of heads without labels."""
        mean = self.embedded["outputs"] if averaged is None else averaged
        found = self._clip_scores.of_average(torch.from_numpy(mean.features))
        return {head: values.numpy() for head, values in found.items()}

    def to_average(self, batch: Batch) -> Tensor:
        """(B, D) of a batch on the device: what is averaged over the clips of a row before :meth:`scores`."""
        features, classifier = self.model.features(batch), self.model.classifier
        return features if classifier is None else self._clip_scores.to_average(classifier.outputs(features))

    def truth(self, head: str) -> NDArray[Any]:
        """Labels of the evaluated rows."""
        return self.features.labels[head]

    def coverage(self) -> dict[str, Any]:
        """How many of the rows were evaluated, and why not all."""
        done = self.joint[0] if "joint" in self.__dict__ else self.features
        return coverage(len(self.split), len(done), done.failures)

    def write_predictions(self, evaluations: Collection[str]) -> None:
        """Writes what the classifier, or else the linear probes, said of every clip, where one of these was evaluated.

        Heads are named as in the metrics.
        """
        if not {"accuracy", "probe"} & set(evaluations):
            return
        prefix = "" if "accuracy" in evaluations else "probe/"
        found = self.scores() if prefix or self.model.classifier is None else self.all_scores()
        scores = {prefix + head: values for head, values in found.items()}
        truth = {prefix + head: values for head, values in self.features.labels.items()}
        classes = {prefix + head: names for head, names in self.labels.items()}
        write_predictions(self.folder / PREDICTIONS, self.features.clip_ids, scores, truth, classes)

    def card(self) -> dict[str, str]:
        """For the head of a report: the split, and how many of its clips were evaluated."""
        covered = self.coverage()
        return {f"split {self.config.split!r}": f"{covered['evaluated']} of {covered['expected']} clips"}

    def _embed(self, model: Loaded, rows: Manifest, what: str) -> dict[str, Embeddings]:
        classifier = model.classifier

        def encode(batch: Batch) -> dict[str, Tensor]:
            features = model.features(batch.to(self.device))
            if classifier is None:
                return {"features": features}
            return {"features": features, "outputs": self._clip_scores.to_average(classifier.outputs(features))}

        def make() -> dict[str, Embeddings]:
            with self.autocast():
                return embed_many(encode, self.loaders.evaluate(rows), description=what)

        names = ("features", "outputs") if classifier else ("features",)
        return self._kept(model, rows, {"what": "features"}, names, make)

    def _kept(
        self,
        model: Loaded,
        rows: Manifest,
        what: dict[str, Any],
        names: Sequence[str],
        make: Callable[[], dict[str, Embeddings]],
    ) -> dict[str, Embeddings]:
        """What ``make`` gives, through the cache where there is one: its key needs a hash of all weights and files."""
        if self.cache.folder is None:
            return make()
        return self.cache.get(self._key(model, rows) | what, names, make)

    def _key(self, model: Loaded, rows: Manifest) -> dict[str, Any]:
        data = self.config.data
        return {
            "model": self.digest if model is self.model else _digest(model),
            "clips": media_digest(rows),
            "protocol": [self.protocol.seconds, self.protocol.eval_clips, self.protocol.average],
            "sample_rate": model.sample_rate,
            "frames": [data.num_frames, data.frame_size] if "video" in model.modalities else None,
            "channel": data.channel,
            "precision": self.config.runtime.precision,
        }


def _hears_alone(model: Loaded) -> bool:
    """Whether its features are those of an audio encoder and of nothing else."""
    return model.frontend is not None and model.modalities == ("audio",)


def _digest(model: Loaded) -> str:
    settings: dict[str, object] = {"kind": model.kind, "labels": model.labels, "modalities": model.modalities}
    modules: list[nn.Module] = [module for module in (model.pair, model.classifier) if module is not None]
    encoder, frontend = model.audio_encoder, model.frontend
    if encoder is not None and frontend is not None and _hears_alone(model):
        settings |= {"model": encoder.name, "options": encoder.config, "frontend": frontend.config}
        modules.append(encoder)
    elif frontend is not None:
        settings["frontend"] = frontend.config
    return model_digest(*modules, settings=settings)
