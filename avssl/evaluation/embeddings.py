"""Embed a set of clips once; probe, retrieval, clustering and pictures all work on what comes out, kept in a cache."""

import hashlib
import json
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avssl.errors import is_of_machine
from avssl.evaluation.arrays import FloatArray, IntArray, unit_rows
from avssl.files import atomic_path
from avssl.progress import Meter

if TYPE_CHECKING:
    from avssl.data.batch import Batch
    from avssl.data.loaders import Loaders
    from avssl.data.manifest import Manifest
    from avssl.loading import Loaded
    from avssl.models.classifier import Classifier
    from avssl.models.pair import AudioVisualPair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """One row for each clip of a manifest that could be read, in the order of the manifest.

    Attributes:
        features: ``(N, D)`` float32, averaged over the clips drawn from the same manifest row.
        clip_ids: N names.
        labels: head -> ``(N,)`` int64, -1 where unlabelled; of a multi-label head ``(N, C)`` float32 zeros and ones, a
            row of -1 where unlabelled.
        index: ``(N,)`` int64, row in the manifest.
        failures: (path, reason) of every clip that could not be read; these rows are absent, never substituted.
    """

    features: FloatArray
    clip_ids: list[str]
    labels: dict[str, NDArray[Any]]
    index: IntArray
    failures: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = len(self.features)
        sizes = {"clip_ids": len(self.clip_ids), "index": len(self.index)}
        sizes |= {f"labels[{head!r}]": len(values) for head, values in self.labels.items()}
        for name, size in sizes.items():
            if size != rows:
                raise ValueError(f"Embeddings.{name}: {size} entries for {rows} rows of features")

    def __len__(self) -> int:
        return len(self.features)

    def select(self, mask: Sequence[bool] | IntArray) -> "Embeddings":
        """The rows where a boolean mask ``(N,)`` is true, or those of an integer index, in its order."""
        rows = np.arange(len(self))[np.asarray(mask)]
        labels = {head: values[rows] for head, values in self.labels.items()}
        ids = [self.clip_ids[row] for row in rows]
        return Embeddings(self.features[rows], ids, labels, self.index[rows], list(self.failures))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one ``.npz`` without pickles; the file appears whole or not at all."""
        arrays: dict[str, Any] = {"features": self.features, "index": self.index}
        arrays |= {f"labels.{head}": values for head, values in self.labels.items()}
        arrays["text"] = np.array(json.dumps({"clip_ids": self.clip_ids, "failures": self.failures}))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # object arrays, the only ones that need pickle, are not among them

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Embeddings":
        """Reads what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            text = json.loads(str(file["text"]))
            labels = {name.removeprefix("labels."): file[name] for name in file.files if name.startswith("labels.")}
            failures = [(place, reason) for place, reason in text["failures"]]
            return cls(file["features"], text["clip_ids"], labels, file["index"], failures)


class _Averager:
    """Sums the clips of each manifest row, so that memory grows with rows and not with clips."""

    def __init__(self, name: str, normalize: bool) -> None:
        self.name, self.normalize = name, normalize
        self.sums: dict[int, FloatArray] = {}
        self.counts: Counter[int] = Counter()

    def add(self, output: Tensor, batch: "Batch") -> None:
        index = batch.index.tolist()
        if output.ndim != 2 or len(output) != len(index):
            raise ValueError(f"{self.name}: encode gave shape {tuple(output.shape)}, expected ({len(index)}, D)")
        features = output.detach().double().cpu().numpy()
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(f"{self.name}: NaN or infinite features for clip {batch.clip_ids[int(finite.argmin())]!r}")
        if self.normalize:
            features = unit_rows(features)
        for row, feature in zip(index, features, strict=True):
            self.sums[row] = self.sums[row] + feature if row in self.sums else feature
            self.counts[row] += 1

    def result(self, order: Sequence[int]) -> FloatArray:
        mean = np.stack([self.sums[row] / self.counts[row] for row in order])
        return (unit_rows(mean) if self.normalize else mean).astype(np.float32)


class ClipScores:
    """The score of a row from the outputs of a classifier for several clips of it.

    Probabilities are averaged as published evaluations do: the softmax of a head with one label a clip, the sigmoid of
    one with several. They come back as log-probabilities and log-odds, whose softmax and sigmoid they are.

    Args:
        labels: Class names of each head, in the order of the outputs.
        multilabel: Heads with several labels a clip.
        clips: Clips of a row; of a single one nothing is averaged.
        average: "probabilities" or "logits".

    Examples:
        >>> import torch
        >>> scores = ClipScores({"sound": ["a", "b"]}, [], clips=2)
        >>> mean = scores.to_average(torch.tensor([[0.0, 4.0], [1.0, 0.0]])).mean(0, keepdim=True)
        >>> scores.of_average(mean)["sound"].softmax(1).round(decimals=3)
        tensor([[0.3750, 0.6250]])
    """

    def __init__(
        self,
        labels: Mapping[str, Sequence[str]],
        multilabel: Collection[str],
        clips: int = 1,
        average: str = "probabilities",
    ) -> None:
        self.sizes = {head: len(names) for head, names in labels.items()}
        self.multilabel = multilabel
        self.logits = clips == 1 or average == "logits"

    def to_average(self, outputs: Tensor) -> Tensor:
        """What of the outputs (B, all classes), logits, is averaged over clips."""
        if self.logits:
            return outputs
        heads = self._split(outputs.double()).items()
        return torch.cat([x.sigmoid() if head in self.multilabel else x.softmax(-1) for head, x in heads], dim=-1)

    def of_average(self, mean: Tensor) -> dict[str, Tensor]:
        """Scores (N, classes) by head of averages (N, all classes): logits, log-probabilities or log-odds."""
        heads = self._split(mean)
        if self.logits:
            return heads
        tiny = torch.finfo(torch.float32).tiny
        scores = {}
        for head, x in heads.items():
            log = x.double().clamp_min(tiny).log()
            odds = log - (1 - x.double()).clamp_min(tiny).log() if head in self.multilabel else log
            scores[head] = odds.float()
        return scores

    def _split(self, outputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sizes, outputs.split(list(self.sizes.values()), dim=-1), strict=True))


def embed_many(
    encode: Callable[["Batch"], Mapping[str, Tensor]],
    batches: Iterable["Batch"],
    *,
    normalize: bool = False,
    progress: bool = True,
    total: int | None = None,
    description: str = "embed",
) -> dict[str, Embeddings]:
    """Several embeddings of each clip (audio and video, say) from one reading of the data.

    Args:
        encode: batch -> name -> ``(B, D)`` tensor. It moves the batch to its device and sets no mode: put the model
            into ``eval()`` first. Runs under ``torch.inference_mode``.
        batches: every clip of the set; the clips of one manifest row share ``batch.index``.
        normalize: scale each clip's feature to length 1 before the average, and the average after it.
        progress: show clips/s and the time left on stderr.
        total: number of clips, for the time left; read off ``batches.dataset`` when it can be.

    Raises:
        ValueError: no clip could be read (with the first reason), or a feature is NaN or infinite (clip named).
    """
    averagers: dict[str, _Averager] = {}
    clip_ids: dict[int, str] = {}
    labels: dict[str, dict[int, NDArray[Any]]] = {}
    failures: list[tuple[str, str]] = []
    started, clips = time.perf_counter(), 0
    dataset: Any = getattr(batches, "dataset", None)
    clips_per_row = getattr(dataset, "clips_per_item", 1)
    if total is None and hasattr(dataset, "__len__"):
        total = len(dataset) * clips_per_row
    with torch.inference_mode(), Meter(description, total=total, unit="clip", shown=progress) as meter:
        for batch in batches:
            failures += [(str(failure.path), str(failure.reason)) for failure in batch.failures]
            size = len(batch.clip_ids)
            meter.update(size + clips_per_row * len(batch.failures))
            if size == 0:
                continue
            clips += size
            for name, output in encode(batch).items():
                averagers.setdefault(name, _Averager(name, normalize)).add(output, batch)
            rows = batch.index.tolist()
            clip_ids.update(zip(rows, batch.clip_ids, strict=True))
            for head, values in batch.labels.items():
                labels.setdefault(head, {}).update(zip(rows, values.cpu().numpy(), strict=True))
    if not clip_ids:
        reason = f"{len(failures)} failures, the first {failures[0][0]}: {failures[0][1]}" if failures else "no batches"
        raise ValueError(f"{description}: not one clip was embedded ({reason})")
    seconds = time.perf_counter() - started
    logger.info(
        "%s: %d clips of %d rows in %.1f s (%.1f clips/s), %d failures",
        *(description, clips, len(clip_ids), seconds, clips / seconds, len(failures)),
    )
    order = sorted(clip_ids)
    shared: dict[str, Any] = {
        "clip_ids": [clip_ids[row] for row in order],
        "labels": {head: np.stack([values[row] for row in order]) for head, values in labels.items()},
        "index": np.array(order, np.int64),
        "failures": failures,
    }
    return {name: Embeddings(features=averager.result(order), **shared) for name, averager in averagers.items()}


def embed(
    encode: Callable[["Batch"], Tensor],
    batches: Iterable["Batch"],
    *,
    normalize: bool = False,
    progress: bool = True,
    total: int | None = None,
    description: str = "embed",
) -> Embeddings:
    """One embedding of each manifest row: :func:`embed_many` for an ``encode`` that gives one ``(B, D)`` tensor.

    >>> features = embed(lambda batch: model(frontend(batch.audio)), loader).features  # doctest: +SKIP
    """
    result = embed_many(
        lambda batch: {description: encode(batch)},
        batches,
        normalize=normalize,
        progress=progress,
        total=total,
        description=description,
    )
    return result[description]


def embed_pair(
    pair: "AudioVisualPair", loaders: "Loaders", manifest: "Manifest", device: torch.device
) -> tuple[Embeddings, Embeddings]:
    """Joint audio and video embeddings of every readable clip of ``manifest``."""
    training = pair.training
    pair.eval()

    def encode(batch: "Batch") -> dict[str, Tensor]:
        batch = batch.to(device)
        assert batch.audio is not None and batch.video is not None
        return {"audio": pair.embed_audio(batch.audio, batch.samples), "video": pair.embed_video(batch.video)}

    both = embed_many(encode, loaders.evaluate(manifest), normalize=True)
    pair.train(training)
    return both["audio"], both["video"]


def embed_features(
    source: "Loaded | Classifier",
    loaders: "Loaders",
    manifest: "Manifest",
    device: torch.device,
    through: nn.Module | None = None,
) -> Embeddings:
    """Features (N, D), before any head, of every readable clip; ``source`` is on ``device``.

    ``through``, where it is given, is a part of the head that they pass first.
    """
    model = source if isinstance(source, nn.Module) else source.model
    training = model.training
    model.eval()

    def encode(batch: "Batch") -> Tensor:
        found = source.features(batch.to(device))
        return found if through is None else through(found)

    features = embed(encode, loaders.evaluate(manifest), description="features")
    model.train(training)
    return features


def classify_split(
    classifier: "Classifier", loaders: "Loaders", manifest: "Manifest", device: torch.device
) -> tuple[Embeddings, dict[str, FloatArray]]:
    """Features (N, D) and scores (N, classes) by head of every readable row, see `ClipScores`."""
    training = classifier.training
    classifier.eval()
    protocol = loaders.protocol
    clips = ClipScores(classifier.labels, manifest.multilabel, protocol.eval_clips, protocol.average)

    def encode(batch: "Batch") -> dict[str, Tensor]:
        features = classifier.features(batch.to(device))
        return {"features": features, "scores": clips.to_average(classifier.outputs(features))}

    both = embed_many(encode, loaders.evaluate(manifest), description="classify")
    classifier.train(training)
    scores = clips.of_average(torch.from_numpy(both["scores"].features))
    return both["features"], {head: values.numpy() for head, values in scores.items()}


def coverage(expected: int, got: int, failures: Iterable[tuple[str, str]] = ()) -> dict[str, object]:
    """What stands beside every metric: how many of the expected clips it was computed on, and why not on all.

    Returns:
        ``{"expected", "evaluated", "share", "reasons": {reason: count}}``; ``share`` is 0..1.

    Raises:
        ValueError: more clips than expected, which means that rows were counted twice.
    """
    if not 0 <= got <= expected:
        raise ValueError(f"coverage: {got} clips evaluated of {expected} expected")
    reasons = Counter(reason for _, reason in failures)
    share = got / expected if expected else 0.0
    return {"expected": expected, "evaluated": got, "share": share, "reasons": dict(reasons.most_common())}


# Part of the key of every kept embedding: raise it when the same weights and clips give other embeddings than before.
CACHE_VERSION = 2


class EmbeddingCache:
    """A folder of embeddings.

    Args:
        folder: where the files are; None keeps nothing and computes every time.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(
        self, key: Mapping[str, Any], names: Sequence[str], make: Callable[[], Mapping[str, Embeddings]]
    ) -> dict[str, Embeddings]:
        """What ``make`` gives, or gave when it was called for the same ``key`` before.

        Args:
            key: all that the embeddings depend on, as plain values; see :func:`model_digest`, :func:`media_digest`.
            names: what ``make`` returns; a file is kept for each.
        """
        if self.folder is None:
            return dict(make())
        text = json.dumps({**key, "version": CACHE_VERSION}, sort_keys=True)
        stem = hashlib.sha256(text.encode()).hexdigest()[:20]
        files = {name: self.folder / f"{stem}-{name}.npz" for name in names}
        found = _read(files)
        if found is not None:
            logger.info("embeddings read from %s", next(iter(files.values())))
            return found
        made = dict(make())
        for name, file in files.items():
            made[name].save(file)
        return made


def _read(files: Mapping[str, Path]) -> dict[str, Embeddings] | None:
    if not all(file.is_file() for file in files.values()):
        return None
    try:
        return {name: Embeddings.load(file) for name, file in files.items()}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if is_of_machine(error):
            raise
        logger.warning("cannot read cached embeddings (%s): computing them again", error)
        return None


def model_digest(*modules: nn.Module, settings: Mapping[str, Any]) -> str:
    """Hash of all weights and buffers, wherever they were loaded from, and of ``settings``."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"\n{name}:{array.dtype}:{tuple(array.shape)}:".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def media_digest(manifest: "Manifest") -> str:
    """Hash of the rows and labels of a manifest, and of the sizes and times of its files."""
    digest = hashlib.sha256(manifest.digest.encode())
    for path in sorted(set(manifest.column("path"))):
        try:
            found = (manifest.root / path).stat()
            digest.update(f"{path}:{found.st_size}:{found.st_mtime_ns}\n".encode())
        except OSError as error:
            if is_of_machine(error):
                raise
            digest.update(f"{path}:absent\n".encode())
    return digest.hexdigest()[:20]
