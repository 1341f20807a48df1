"""How good are the audio features so far? A linear probe beside the validation of a pretraining run."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from avssl.config import DataConfig
from avssl.data.batch import Batch
from avssl.data.catalog import open_data
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits
from avssl.evaluation.classification import headline, multi_head_metrics
from avssl.evaluation.embeddings import embed
from avssl.evaluation.probe import linear_probe
from avssl.models.pair import AudioVisualPair

logger = logging.getLogger(__name__)

MAX_ROWS = 512


@dataclass
class OnlineProbe:
    """Fits a linear probe on the first half of some labelled rows and scores it on the second, the same every time.

    Attributes:
        rows: Labelled rows, in random order.
        labels: Class names of each head that has labels in both halves.
        loaders: Of audio.
        seed: Seed of the probe's cross-validation.
    """

    rows: Manifest
    labels: dict[str, list[str]]
    loaders: Loaders
    seed: int

    @classmethod
    def open(cls, config: DataConfig, splits: Splits, loaders: Loaders, seed: int) -> "OnlineProbe":
        """The probe of a pretraining run, on at most ``MAX_ROWS`` rows that it does not train on.

        Those are of the split "train" where the data has a split "pretrain" beside it, else of the validation rows.

        Raises:
            ValueError: when these rows have too few labels.
        """
        manifest = open_data(config.name, root=config.root, options=config.options)
        source, name = splits.val, "the validation rows"
        if len(manifest.select("pretrain")):
            source, name = manifest.select("train").usable(audio=True, channel=config.channel)[0], "split 'train'"
        rows = None if source is None else _some_labelled(source, list(splits.labels), seed)
        labels = {} if rows is None else _in_both_halves(rows, splits.labels)
        if rows is None or not labels:
            raise ValueError(
                f"online_probe: data {config.name} has too few labels in {name}; use data with labels (data.heads) "
                "and a split 'val' or data.val_fraction, or turn online_probe off"
            )
        return cls(rows, labels, replace(loaders, modalities=("audio",)), seed)

    def __call__(self, pair: AudioVisualPair, device: torch.device) -> dict[str, float]:
        """``HEAD/probe_top1`` (``probe_mAP`` of several labels a clip) of ``pair``'s audio features, by head.

        Features are taken before the projection.
        """
        training = pair.training
        pair.eval()

        def encode(batch: Batch) -> torch.Tensor:
            batch = batch.to(device)
            assert batch.audio is not None
            return pair.encode_audio(pair.frontend(batch.audio, batch.samples)).mean(dim=2)

        features = embed(encode, self.loaders.evaluate(self.rows), description="online probe")
        pair.train(training)
        first = features.index < len(self.rows) // 2
        fit, held_out = features.select(np.flatnonzero(first)), features.select(np.flatnonzero(~first))
        scores = {
            head: linear_probe(fit, held_out, head, len(names), seed=self.seed).scores
            for head, names in self.labels.items()
        }
        metrics = multi_head_metrics(scores, held_out.labels, seed=self.seed)
        names = {head: headline(metrics, head) for head in self.labels}
        return {f"{head}/probe_{name}": metrics[f"{head}/{name}"] for head, name in names.items()}


def _some_labelled(source: Manifest, heads: list[str], seed: int) -> Manifest:
    labelled = np.zeros(len(source), dtype=bool)
    for head in heads:
        labelled |= source.labelled(head)
    order = np.random.default_rng((seed, 11)).permutation(np.flatnonzero(labelled))
    return source.take(order[:MAX_ROWS])


def _in_both_halves(rows: Manifest, labels: dict[str, list[str]]) -> dict[str, list[str]]:
    half = len(rows) // 2
    known = {head: _known(rows, head) for head in labels}
    return {head: labels[head] for head in labels if known[head][:half].any() and known[head][half:].any()}


def _known(rows: Manifest, head: str) -> np.ndarray:
    """(N,) bool: rows with a class of ``head``, which a labelled row of several labels may lack."""
    known = np.zeros(len(rows), dtype=bool)
    known[rows.label_pairs(head)[0]] = True
    return known
