"""Fine-tuning where clips have several labels: alone, and beside a set of one label a clip, from config to report."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from sklearn.metrics import average_precision_score

import mast
from avssl.commands.evaluate import evaluate
from avssl.commands.finetune import finetune
from avssl.config import (
    AudioConfig,
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    LogConfig,
    MixupConfig,
    OptimConfig,
    RuntimeConfig,
    WandbConfig,
)
from avssl.data.failures import DataError
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import open_splits
from avssl.loading import load

PITCHES = {"low": 250.0, "middle": 900.0, "high": 3000.0}
AUDIO = AudioConfig(options={"embed_dim": 8, "depths": [1, 1, 1, 1]}, num_mels=32, sample_rate=8000)
SHARED = {
    "audio": AUDIO,
    "checkpoint": "none",
    "runtime": RuntimeConfig(accelerator="cpu"),
    "wandb": WandbConfig(mode="disabled"),
    "log": LogConfig(every=1, validate_every=2),
    "augment": AugmentConfig(mixup=MixupConfig("waveform", probability=1.0)),
}


def write(folder: Path, name: str, pitches: list[float], seed: int) -> None:
    waveform = 0.01 * np.random.default_rng(seed).standard_normal(4000)
    for pitch in pitches:
        waveform += 0.2 * np.sin(2 * np.pi * pitch * np.arange(4000) / 8000)
    wavfile.write(folder / name, 8000, (waveform * 32767).astype(np.int16))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two manifests: chords.parquet, every chord of three pitches; and alone.parquet, one pitch a clip."""
    folder = tmp_path_factory.mktemp("data")
    rows, names = [], list(PITCHES)
    for k in range(42):
        chord = [name for bit, name in enumerate(names) if (k % 7 + 1) >> bit & 1]
        write(folder, f"{k}.wav", [PITCHES[name] for name in chord], k)
        split = ("train", "train", "train", "train", "val", "test")[k // 7]
        rows.append({"clip_id": str(k), "path": f"{k}.wav", "split": split, "label.pitch": chord})
    rows[3]["label.pitch"] = None
    Manifest.from_rows(rows, folder, {"pitch": names}).save(folder / "chords.parquet")
    rows = []
    for k in range(18):
        write(folder, f"alone{k}.wav", [PITCHES[names[k % 3]]], 100 + k)
        split = "train" if k < 12 else "test"
        rows.append({"clip_id": f"a{k}", "path": f"alone{k}.wav", "split": split, "label.pitch": k % 3})
    Manifest.from_rows(rows, folder, {"pitch": names}).save(folder / "alone.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def chords(data: Path, **options) -> DataConfig:
    return DataConfig(name=str(data / "chords.parquet"), clip_seconds=0.5, num_workers=0, **options)


def test_a_linear_probe_of_several_labels(data: Path, tmp_path: Path) -> None:
    result = finetune(FinetuneConfig(data=chords(data), output=tmp_path, **SHARED))
    metrics = result["metrics"]
    assert metrics["pitch/mAP_low"] <= metrics["pitch/mAP"] <= metrics["pitch/mAP_high"]
    assert metrics["pitch/mAP"] > 0.9 and metrics["pitch/count"] == 7 and "pitch/top1" not in metrics
    assert list(result["classes"]["pitch"]) == list(PITCHES) and result["classes"]["pitch"]["low"]["clips"] == 4
    page, covered = (tmp_path / "report.html").read_text(), result["coverage"]["evaluated"]
    assert not list(tmp_path.rglob("confusion*")) and "pitch mAP" in page
    assert f"{covered['evaluated']} of {covered['expected']} clips" in page
    export = mast.from_pretrained(tmp_path / "audio_encoder")
    assert export.extra["multilabel"] == ["pitch"]
    options = {"data": chords(data), "runtime": SHARED["runtime"], "output": tmp_path / "evaluated"}
    again = evaluate(EvaluateConfig(str(tmp_path), evaluations=["accuracy"], **options))
    assert again["metrics"]["pitch/mAP"] == pytest.approx(metrics["pitch/mAP"])
    assert again["details"]["accuracy"]["pitch"].keys() == result["classes"]["pitch"].keys()  # reported in one way
    assert [headline.name for headline in again["headlines"]] == [headline.name for headline in result["headlines"]]


def test_full_training_learns_every_label_of_a_clip(data: Path, tmp_path: Path) -> None:
    optim = OptimConfig(batch_size=9, max_steps=40, lr=3e-3)
    shared = {**SHARED, "log": LogConfig(every=1, validate_every=20), "augment": AugmentConfig()}
    config = FinetuneConfig(
        data=chords(data, sampling="balanced"), head="full", label_smoothing=0.0, optim=optim, output=tmp_path, **shared
    )
    result = finetune(config)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    # Guessing a half for each class costs log 2 = 0.69.
    assert losses[0] > 0.5 and np.mean(losses[-5:]) < 0.25
    validated = [row["val/pitch/mAP"] for row in rows if "val/pitch/mAP" in row]
    assert len(validated) == 2 and validated[-1] > 0.9 and "val/pitch/top1" not in {key for row in rows for key in row}
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    loaded = load(tmp_path)
    splits = open_splits(config.data, modalities=("audio",), labelled=True)
    (batch,) = Loaders(config.data, splits.protocol, ("audio",), 8000, 8, 0).evaluate(splits.test)
    scores = loaded.classifier.classify(batch.audio)["pitch"].sigmoid().detach().numpy()
    np.testing.assert_allclose(loaded.scores(batch)["pitch"], scores, atol=1e-6)
    assert ((scores > 0.5) == (batch.labels["pitch"].numpy() > 0)).mean() > 0.9
    expected = average_precision_score(batch.labels["pitch"].numpy(), scores, average="macro")
    assert result["metrics"]["pitch/mAP"] == pytest.approx(expected)


def both(data: Path, **options) -> DataConfig:
    sets = [{"name": str(data / "chords.parquet")}, {"name": str(data / "alone.parquet")}]
    return DataConfig(name="union", options={"sets": sets}, clip_seconds=0.5, num_workers=0, **options)


def test_two_sets_train_together_each_by_its_own_labels(data: Path, tmp_path: Path) -> None:
    optim = OptimConfig(batch_size=13, max_steps=2)
    weights = {"chords-pitch": 2.0, "alone-pitch": 0.5}
    config = FinetuneConfig(
        data=both(data, sampling="balanced"), head="full", head_weights=weights, optim=optim, output=tmp_path, **SHARED
    )
    result = finetune(config)
    metrics = result["metrics"]
    assert metrics["chords-pitch/count"] == 7 and metrics["alone-pitch/count"] == 6
    assert {"chords-pitch/mAP", "chords-pitch/mAUC", "alone-pitch/top1", "alone-pitch/mAP"} <= metrics.keys()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss/chords-pitch", "train/loss/alone-pitch", "train/alone-pitch/train_top1"} <= rows[0].keys()
    # Only one of the sets has a split "val": the other head has no validation, and that is no error.
    assert "val/chords-pitch/mAP" in rows[-1] and "val/alone-pitch/top1" not in rows[-1]
    assert mast.from_pretrained(tmp_path / "audio_encoder").extra["multilabel"] == ["chords-pitch"]
    assert len(list(tmp_path.rglob("confusion-*"))) == len(list(tmp_path.rglob("confusion-alone-pitch.*"))) == 1


def test_two_sets_in_a_linear_probe(data: Path, tmp_path: Path) -> None:
    metrics = finetune(FinetuneConfig(data=both(data), output=tmp_path, **SHARED))["metrics"]
    assert metrics["chords-pitch/mAP"] > 0.9 and metrics["alone-pitch/top1"] > 0.8


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head_weights": {"sound": 1.0}}, ValueError, "head_weights: no head 'sound'; .*: pitch"),
        ({"head_weights": {"pitch": 0.0}}, ValueError, r"head_weights\.pitch: must be above 0, got 0"),
        ({"objectives": [{"name": "imc", "modality": "audio"}], "augment": AugmentConfig()}, ValueError,
         "imc: clips have several labels under head 'pitch'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told(data: Path, tmp_path: Path, options, error, message) -> None:
    optim = OptimConfig(batch_size=8, max_steps=1)
    with pytest.raises(error, match=message):
        finetune(FinetuneConfig(data=chords(data), head="full", optim=optim, output=tmp_path, **SHARED | options))


def test_balanced_sampling_without_labels_is_told(data: Path) -> None:
    splits = open_splits(chords(data, sampling="balanced"), modalities=("audio",), labelled=True)
    loaders = Loaders(chords(data, sampling="balanced"), splits.protocol, ("audio",), 8000, 8, 0)
    alone = type("OneProcess", (), {"world_size": 1, "global_rank": 0})()
    with pytest.raises(DataError, match="needs labels"):
        loaders.train(splits.train, alone)
