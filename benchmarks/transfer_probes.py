"""What else benchmarks/transfer.py asks of an encoder: who a clip is of, and how its features and embeddings lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transfer_setup import IDENTITY, SETS, Study

from avssl.cli import parse
from avssl.config import FinetuneConfig
from avssl.data.loaders import Loaders
from avssl.data.splits import open_splits
from avssl.evaluation.diagnostics import diagnose, uniformity
from avssl.evaluation.embeddings import embed, embed_pair
from avssl.loading import load
from avssl.training.initialization import frame_size_for

FOLDS = 4


def probe_identity(features: np.ndarray, names: Sequence[str | None]) -> dict[str, float]:
    """How well a linear probe tells who a clip is of, among the rows themselves: stratified folds, cross-validated.

    It is fitted and judged on clips of the same speakers or sources, since those of the test are in no other split.

    Args:
        features: (N, D).
        names: N; None of clips that are of nobody known. Names of fewer than FOLDS clips are left out.

    Returns:
        "top1", "chance" (the share of the largest group) and "identities"; empty where there are not two of them.
    """
    known = [name for name in names if name is not None]
    kept = {name for name in known if known.count(name) >= FOLDS}
    if len(kept) < 2:
        return {}
    rows = np.array([name in kept for name in names])
    labels = np.array([name for name in names if name in kept])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    top1 = float(cross_val_score(probe, features[rows], labels, cv=folds).mean())
    _, counts = np.unique(labels, return_counts=True)
    return {"top1": top1, "chance": float(counts.max() / counts.sum()), "identities": float(len(kept))}


def look_at_encoder(study: Study, column: str, draw: int, checkpoint: Path) -> dict[str, Any]:
    """Identity probe, uniformity and rank of the features of the test clips of ``column``.

    Args:
        checkpoint: a run of a linear head, whose encoder is as it was before.
    """
    config = parse(FinetuneConfig, ["--config", "none", "--checkpoint", "none", *study.data(column, draw)])
    data = config.data
    data.heads, data.clip_seconds, data.num_workers = [SETS[column].head], SETS[column].seconds, 0
    splits = open_splits(data, modalities=("audio",), labelled=True, seed=draw)
    test = splits.labelled_test
    assert test is not None
    subject = load(checkpoint / "audio_encoder", torch.device("cpu"))
    loaders = Loaders(data, splits.protocol, ("audio",), subject.sample_rate, 32, draw)
    found = embed(subject.features, loaders.evaluate(test), progress=False)
    features = torch.from_numpy(found.features)
    numbers = {name: value.item() for name, value in diagnose(audio_features=features).items()}
    numbers["uniformity"] = uniformity(torch.nn.functional.normalize(features - features.mean(0), dim=1)).item()
    numbers["feature_norm"] = features.norm(dim=1).mean().item()
    who = IDENTITY.get(column)
    names = [test.column(who)[row] for row in found.index] if who in test.table.column_names else []
    return {"numbers": numbers, "identity": probe_identity(found.features, names) if names else {}}


def look_at_pair(study: Study, row: str, draw: int, run: Path) -> dict[str, float]:
    """Alignment, uniformity and rank of the joint embeddings of the test clips of the set that was pretrained on."""
    subject = load(run, torch.device("cpu"))
    assert subject.pair is not None and subject.frames is not None
    config = parse(FinetuneConfig, ["--config", "none", "--checkpoint", "none", *study.data(row, draw)])
    data = config.data
    data.num_frames, data.frame_size, data.num_workers = subject.frames[0], frame_size_for(subject.frames[1]), 0
    data.clip_seconds = SETS[row].seconds
    splits = open_splits(data, modalities=("audio", "video"), labelled=True, seed=draw)
    test = splits.labelled_test
    assert test is not None
    loaders = Loaders(data, splits.protocol, ("audio", "video"), subject.sample_rate, 32, draw)
    audio, video = embed_pair(subject.pair, loaders, test, torch.device("cpu"))
    found = diagnose(torch.from_numpy(audio.features), torch.from_numpy(video.features))
    return {name: value.item() for name, value in found.items()}
