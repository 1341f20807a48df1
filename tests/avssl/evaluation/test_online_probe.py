"""Which rows the online probe takes, and what it gives for features whose quality is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avssl.config import DataConfig
from avssl.data.batch import Batch
from avssl.data.loaders import ClipProtocol, Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits
from avssl.evaluation import probe
from avssl.evaluation.probe import MAX_ROWS, OnlineProbe

HEADS = {"event": ["a", "b"], "place": ["x", "y"]}


def manifest(splits: dict[str, int], tmp_path, places: bool = False) -> Manifest:
    """Rows of each split; those of "pretrain" have no label."""
    rows = [
        {
            "clip_id": f"{split}{i}",
            "path": f"{split}{i}.wav",
            "split": split,
            "has_audio": True,
            "label.event": None if split == "pretrain" else i % 2,
            "label.place": i % 2 if places else None,
        }
        for split, count in splits.items()
        for i in range(count)
    ]
    return Manifest.from_rows(rows, tmp_path, HEADS)


def open_probe(monkeypatch, data: Manifest, val: Manifest | None, seed: int = 0) -> OnlineProbe:
    monkeypatch.setattr(probe, "open_data", lambda *arguments, **options: data)
    config = DataConfig(name="some")
    train = data.select("train")
    splits = Splits(train, val, None, HEADS, ClipProtocol(1.0), "digest")
    loaders = Loaders(config, splits.protocol, ("audio", "video"), 8000, 4, seed)
    return OnlineProbe.open(config, splits, loaders, seed)


def ids(probe: OnlineProbe) -> list[str]:
    return probe.rows.column("clip_id")


def test_takes_labelled_rows_that_are_not_trained_on(monkeypatch, tmp_path) -> None:
    beside = manifest({"pretrain": 9, "train": MAX_ROWS + 50, "val": 7}, tmp_path)
    probe = open_probe(monkeypatch, beside, beside.select("val"))
    assert len(probe.rows) == MAX_ROWS and all(name.startswith("train") for name in ids(probe))
    assert ids(probe) == ids(open_probe(monkeypatch, beside, None)) != sorted(ids(probe))
    assert ids(probe) != ids(open_probe(monkeypatch, beside, None, seed=1))
    assert list(probe.labels) == ["event"] and probe.loaders.modalities == ("audio",)
    alone = manifest({"train": 20, "val": 8}, tmp_path, places=True)
    probe = open_probe(monkeypatch, alone, alone.select("val"))
    assert sorted(ids(probe)) == [f"val{i}" for i in range(8)] and list(probe.labels) == ["event", "place"]


def test_too_few_labels_are_told(monkeypatch, tmp_path) -> None:
    for data, val, place in (
        (manifest({"pretrain": 9, "val": 8}, tmp_path), "val", "split 'train'"),
        (manifest({"train": 9, "val": 1}, tmp_path), "val", "the validation rows"),
        (manifest({"train": 9}, tmp_path), None, "the validation rows"),
    ):
        with pytest.raises(ValueError, match=f"online_probe: data some has too few labels in {place}"):
            open_probe(monkeypatch, data, data.select(val) if val else None)


class FixedPair(torch.nn.Module):
    """Features are the waveform itself."""

    frontend = staticmethod(lambda waveform, samples: waveform)

    def encode_audio(self, spectrogram: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.stack([spectrogram - 1, spectrogram + 1], dim=2)  # by time, (B, A, T')


@pytest.mark.parametrize("told", [True, False])
def test_probe_finds_what_the_features_tell(told: bool, monkeypatch, tmp_path) -> None:
    data = manifest({"pretrain": 2, "train": 80}, tmp_path)
    probe = open_probe(monkeypatch, data, None)
    labels = torch.tensor(probe.rows.labels("event"))
    features = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    if told:
        features[:, 1] += 20 * labels
    batch = Batch(features, None, {"event": labels}, torch.arange(80), ids(probe), torch.zeros(80))
    probe.loaders = SimpleNamespace(evaluate=lambda rows: [batch])
    pair = FixedPair().train()
    metrics = probe(pair, torch.device("cpu"))
    assert pair.training and metrics.keys() == {"event/probe_top1"}
    assert metrics["event/probe_top1"] == 1.0 if told else 0.2 < metrics["event/probe_top1"] < 0.8
    assert np.isfinite(metrics["event/probe_top1"])


def test_several_labels_a_clip_are_probed_by_average_precision(monkeypatch, tmp_path) -> None:
    rows = [
        {"clip_id": f"{i}", "path": f"{i}.wav", "split": "pretrain" if i > 79 else "train", "has_audio": True,
         "label.event": None if i % 10 == 0 else [c for c in (0, 1) if i >> c & 1]}
        for i in range(82)
    ]  # fmt: skip
    data = Manifest.from_rows(rows, tmp_path, HEADS)
    probe = open_probe(monkeypatch, data, None)
    labels = torch.tensor(probe.rows.labels("event"))
    assert len(labels) == 72 and list(probe.labels) == ["event"]
    features = torch.randn(72, 3, generator=torch.Generator().manual_seed(0))
    features[:, 1:] += 20 * labels
    batch = Batch(features, None, {"event": labels}, torch.arange(72), ids(probe), torch.zeros(72))
    probe.loaders = SimpleNamespace(evaluate=lambda rows: [batch])
    assert probe(FixedPair(), torch.device("cpu")) == {"event/probe_mAP": pytest.approx(1.0)}
