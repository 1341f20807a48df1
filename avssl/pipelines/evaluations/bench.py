"""Where evaluations work: the checkpoint, the clips, and everything about them that more than one of them needs."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from avssl.config import EvaluateConfig
from avssl.data.batch import Batch
from avssl.data.manifest import Manifest
from avssl.data.places import HELP, has_boxes
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.cache import EmbeddingCache, media_digest
from avssl.evaluation.embeddings import ClipScores, Embeddings, coverage, embed_many
from avssl.evaluation.epic import is_epic
from avssl.evaluation.probe import ProbeResult, linear_probe
from avssl.pipelines.data import ClipProtocol, Loaders
from avssl.pipelines.evaluations.subject import Subject
from avssl.pipelines.pretrain import embed_pair


@dataclass
class Bench:
    """The state that evaluations share; what is asked for twice is computed once.

    Attributes:
        config: of the evaluation.
        subject: the loaded checkpoint.
        split: rows to evaluate.
        training: labelled rows to fit probes on, none of them evaluated; None where the data has none.
        labels: class names of each head to evaluate.
        protocol: length and number of the clips of a row.
        loaders: of the subject's modalities.
        folder: of the result.
        fabric: device and precision.
        cache: of embeddings.
    """

    config: EvaluateConfig
    subject: Subject
    split: Manifest
    training: Manifest | None
    labels: dict[str, list[str]]
    protocol: ClipProtocol
    loaders: Loaders
    folder: Path
    fabric: Fabric
    cache: EmbeddingCache
    _probes: dict[str, ProbeResult] = field(default_factory=dict)

    @property
    def clips(self) -> str:
        """How the features of a row are made, for names of metrics."""
        return self.protocol.words("features")

    @property
    def scored_clips(self) -> str:
        """How a row is scored, for names of metrics."""
        return self.clips if self.subject.classifier is None else self.protocol.words()

    @property
    def clip_protocol(self) -> str:
        """Which clips of a row are scored, for result.json: of a checkpoint without classes its features count."""
        return self.protocol.told("features" if self.subject.classifier is None else None)

    @cached_property
    def _clip_scores(self) -> ClipScores:
        several = self.split.multilabel
        return ClipScores(self.subject.labels, several, self.protocol.eval_clips, self.protocol.average)

    def lacks(self, need: str) -> str:
        """Why ``need`` is not met, for an error; empty where it is.

        Args:
            need: pair or classifier (kind of checkpoint); labels (the split has some); classes (a single-label head
                among them); training (labelled training rows, other than the evaluated ones); scores (classes of the
                checkpoint's own, or training rows for a linear probe); hearing (the checkpoint takes sound);
                unlabelled (the split has no labels); epic (its heads are EPIC-KITCHENS's); places (the data say where
                in the picture that which sounds is).
        """
        if need == "places":
            return "" if has_boxes(self.split) else f"{self.config.data.name} does not say where what sounds is: {HELP}"
        if need == "epic":
            return "" if is_epic(self.split.heads) else "the data has not the two heads verb and noun"
        if need == "unlabelled":
            return f"split {self.config.split!r} has labels" if self.heads else ""
        if need == "hearing":
            return "" if "audio" in self.subject.modalities else "the checkpoint hears nothing"
        if need == "scores" and self.subject.classifier is not None:
            return ""
        if need in ("pair", "classifier"):
            return "" if self.subject.kind == need else f"the checkpoint is no {need}"
        if need == "labels":
            return "" if self.heads else f"split {self.config.split!r} has no labelled clip"
        if need == "classes":
            single = any(self.split.labels(head).ndim == 1 for head in self.heads)
            return "" if single else f"split {self.config.split!r} has no head with one label for each clip"
        if self.training is not None:
            return ""
        if self.config.split == "train":
            return "the training split would be judged by itself; evaluate another --split"
        return f"data {self.config.data.name} has no labelled split 'train'"

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
        return self._embed(self.subject, self.split, "evaluated clips")

    @property
    def features(self) -> Embeddings:
        """Features of the evaluated rows."""
        return self.embedded["features"]

    @cached_property
    def training_features(self) -> Embeddings:
        """Features of the training rows."""
        assert self.training is not None
        return self._embed(self.subject, self.training, "training clips")["features"]

    def twin_features(self) -> tuple[Embeddings, Embeddings] | None:
        """Features of the training and of the evaluated rows by the same architecture with random weights."""
        twin = self.subject.random_twin(self.config.seed)
        if twin is None or self.training is None:
            return None
        train, test = (
            self._embed(twin, rows, f"random weights, {name} clips")["features"]
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
        pair = self.subject.pair
        assert pair is not None
        loaders = self.pair_loaders

        def make() -> dict[str, Embeddings]:
            with self.fabric.autocast():
                audio, video = embed_pair(pair, loaders, self.split, self.fabric.device)
            return {"audio": audio, "video": video}

        frames = [self.config.data.num_frames, self.config.data.frame_size]
        key = self._key(self.subject, self.split) | {"what": "joint", "frames": frames}
        both = self.cache.get(key, ("audio", "video"), make)
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
        if self.subject.classifier is not None:
            return {head: values for head, values in self.all_scores(averaged).items() if head in self.heads}
        if averaged is None:
            return {head: self.probe(head).scores for head in self.heads}
        rows = averaged.features
        return {head: rows @ self.probe(head).weight.T + self.probe(head).bias for head in self.heads}

    def all_scores(self, averaged: Embeddings | None = None) -> dict[str, FloatArray]:
        """Those of all heads of the classifier, also of heads without labels."""
        mean = self.embedded["outputs"] if averaged is None else averaged
        found = self._clip_scores.of_average(torch.from_numpy(mean.features))
        return {head: values.numpy() for head, values in found.items()}

    def to_average(self, batch: Batch) -> Tensor:
        """(B, D) of a batch on the device: what is averaged over the clips of a row before :meth:`scores`."""
        features, classifier = self.subject.features(batch), self.subject.classifier
        return features if classifier is None else self._clip_scores.to_average(classifier.outputs(features))

    def truth(self, head: str) -> NDArray[Any]:
        """Labels of the evaluated rows."""
        return self.features.labels[head]

    def covered(self) -> dict[str, Any]:
        """How many of the rows were evaluated, and why not all."""
        done = self.joint[0] if "joint" in self.__dict__ else self.features
        return coverage(len(self.split), len(done), done.failures)

    def _embed(self, subject: Subject, rows: Manifest, what: str) -> dict[str, Embeddings]:
        classifier = subject.classifier

        def encode(batch: Batch) -> dict[str, Tensor]:
            features = subject.features(batch.to(self.fabric.device))
            if classifier is None:
                return {"features": features}
            return {"features": features, "outputs": self._clip_scores.to_average(classifier.outputs(features))}

        def make() -> dict[str, Embeddings]:
            with self.fabric.autocast():
                return embed_many(encode, self.loaders.evaluate(rows), description=what)

        names = ("features", "outputs") if classifier else ("features",)
        return self.cache.get(self._key(subject, rows) | {"what": "features"}, names, make)

    def _key(self, subject: Subject, rows: Manifest) -> dict[str, Any]:
        data = self.config.data
        return {
            "model": subject.digest,
            "clips": media_digest(rows),
            "protocol": [self.protocol.seconds, self.protocol.eval_clips, self.protocol.average],
            "sample_rate": subject.sample_rate,
            "frames": [data.num_frames, data.frame_size] if "video" in subject.modalities else None,
            "channel": data.channel,
            "precision": self.config.runtime.precision,
        }


def labelled(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) whether a row has a label, of a single- or multi-label head."""
    return np.asarray(labels >= 0 if labels.ndim == 1 else (labels >= 0).all(axis=1))
