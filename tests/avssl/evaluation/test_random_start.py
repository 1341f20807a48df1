"""A pretrained start against random weights: the second run, the paired difference, the warning."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.io import wavfile

import mast
from avssl.commands.finetune import finetune
from avssl.config import AudioConfig, DataConfig, FinetuneConfig, RuntimeConfig, WandbConfig
from avssl.data.manifest import Manifest
from avssl.evaluation.random_start import compare_with_random_start
from avssl.evaluation.result import FILE, write_predictions
from avssl.evaluation.statistics import mcnemar

CLIPS = [f"clip{k}" for k in range(24)]
TRUTH = np.arange(24) % 2


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """A table of low and high tones in noise: 16 to train on, 24 to judge by."""
    folder = tmp_path_factory.mktemp("tones")
    lines = ["path,label,split"]
    for k in range(40):
        rng = np.random.default_rng(k)
        pitch = (300.0, 2000.0)[k % 2] * rng.uniform(0.9, 1.1)
        sound = 9000 * np.sin(2 * np.pi * pitch * np.arange(4000) / 8000) + 500 * rng.standard_normal(4000)
        wavfile.write(folder / f"{k}.wav", 8000, sound.astype(np.int16))
        lines.append(f"{k}.wav,{('low', 'high')[k % 2]},{'train' if k < 16 else 'test'}")
    (folder / "tones.csv").write_text("\n".join(lines) + "\n")
    return folder / "tones.csv"


@pytest.fixture(scope="module")
def random_run(tones: Path, tmp_path_factory) -> FinetuneConfig:
    """A linear probe of random weights, which separates the tones."""
    config = FinetuneConfig(
        data=DataConfig(name=str(tones), clip_seconds=0.5, num_workers=0),
        checkpoint="none",
        audio=AudioConfig("mast_pico", {"embed_dim": 8, "depths": [1, 1, 1, 1]}, sample_rate=8000, num_mels=32),
        runtime=RuntimeConfig(accelerator="cpu"),
        wandb=WandbConfig(mode="disabled"),
        output=tmp_path_factory.mktemp("runs") / "tones",
    )
    finetune(config)
    return config


def spoiled(run: Path, folder: Path) -> Path:
    """An export of an encoder that hears the same in all clips."""
    source = mast.from_pretrained(run / "audio_encoder")
    with torch.no_grad():
        source.model.norm.weight.zero_()
    source.model.reset_classifier(0)
    source.model.save_pretrained(folder, frontend=source.frontend)
    return folder


def test_a_start_that_hurts_is_told_beside_random_weights(tones, random_run, tmp_path, caplog) -> None:
    bad = spoiled(random_run.output, tmp_path / "spoiled")
    config = replace(random_run, checkpoint=str(bad), audio=AudioConfig(), compare_random=True, output=tmp_path / "run")
    result = finetune(config)
    told = json.loads((tmp_path / "run" / "result.json").read_text())["details"]["random_start"]
    assert told == result["details"]["random_start"]
    assert told["verdict"] == "hurts" and told["folder"] == str(tmp_path / "run-random")
    found = told["heads"]["label"]
    assert found["pretrained"] == 0.5 == result["metrics"]["label/top1"], (
        "the spoiled encoder says one class throughout"
    )
    # The other run is what finetune makes of random weights of this architecture by itself.
    assert found["random"] == finetune(replace(random_run, output=tmp_path / "alone"))["metrics"]["label/top1"] > 0.9
    assert found["difference"] == pytest.approx(found["pretrained"] - found["random"]) and found["high"] < 0
    assert "Against random weights" in (tmp_path / "run" / "report.html").read_text()
    assert "Pretraining hurts here" in caplog.text
    assert "random_start" not in json.loads((tmp_path / "run-random" / "result.json").read_text())["details"]


def test_a_finished_run_can_be_compared_afterwards(random_run, tmp_path) -> None:
    """It is the same run with the same numbers, now with a comparison: the two encoders are of one random draw."""
    config = replace(
        random_run, checkpoint=str(random_run.output / "audio_encoder"), audio=AudioConfig(), output=tmp_path / "run"
    )
    alone = finetune(config)
    compared = finetune(replace(config, compare_random=True))
    assert compared["details"]["random_start"]["verdict"] == "no difference"
    assert compared["metrics"]["label/top1"] == alone["metrics"]["label/top1"]


def test_random_weights_are_not_compared_with_themselves(random_run: FinetuneConfig, tmp_path) -> None:
    with pytest.raises(ValueError, match="compare_random: the start is random weights already"):
        finetune(replace(random_run, compare_random=True, output=tmp_path / "run"))


def answers(right: np.ndarray, truth: np.ndarray = TRUTH) -> np.ndarray:
    """Scores (N, 2), right where ``right`` (N,) says so."""
    return np.eye(2)[np.where(right, truth, 1 - truth)]


def run_of(folder: Path, right: np.ndarray, truth: np.ndarray = TRUTH, clips: list[str] = CLIPS) -> Path:
    """A run from random weights."""
    write_predictions(folder / FILE, clips, {"label": answers(right, truth)}, {"label": truth})
    return folder


def rows(**columns: list[str]) -> Manifest:
    """The test clips, with further columns."""
    clips = {"clip_id": CLIPS, "path": [f"{clip}.wav" for clip in CLIPS], "split": ["test"] * 24}
    return Manifest(pa.table(clips | columns), "media")


def test_clips_of_their_own_are_compared_by_mcnemar_whatever_their_order(tmp_path) -> None:
    ours, theirs = np.arange(24) < 20, np.arange(24) < 9
    random = run_of(tmp_path, theirs[::-1], TRUTH[::-1], CLIPS[::-1])
    found = compare_with_random_start(CLIPS, {"label": answers(ours)}, {"label": TRUTH}, rows(), random)
    right, told = mcnemar(ours, theirs), found.details["heads"]["label"]
    assert found.details["verdict"] == "helps"
    assert (told["difference"], told["low"], told["high"], told["p"]) == (right.value, right.low, right.high, right.p)
    assert (told["pretrained"], told["random"]) == (20 / 24, 9 / 24)
    assert found.metrics["label/gain_top1_low"] == right.low


def test_clips_of_one_speaker_count_as_one(tmp_path) -> None:
    """Eleven clips more are right, but all of them are of one of three speakers."""
    ours, theirs = np.arange(24) < 20, np.arange(24) < 9
    speakers = rows(speaker=["a"] * 8 + ["b"] * 12 + ["c"] * 4)
    found = compare_with_random_start(
        CLIPS, {"label": answers(ours)}, {"label": TRUTH}, speakers, run_of(tmp_path, theirs)
    )
    told = found.details["heads"]["label"]
    assert found.details["verdict"] == "no difference" and told["low"] < 0 < told["high"]
    assert "3 groups of 24 clips" in told["test"]


def test_several_labels_a_clip_are_compared_by_map(tmp_path) -> None:
    truth = np.stack([TRUTH, 1 - TRUTH], axis=1).astype(np.float32)
    good, bad = truth + 0.0, np.random.default_rng(0).random((24, 2))
    write_predictions(tmp_path / FILE, CLIPS, {"tags": bad}, {"tags": truth})
    found = compare_with_random_start(CLIPS, {"tags": good}, {"tags": truth}, rows(), tmp_path)
    told = found.details["heads"]["tags"]
    assert told["metric"] == "mAP" and told["pretrained"] == 1 > told["random"] and told["low"] > 0


def test_other_labels_of_the_same_clips_are_refused(tmp_path) -> None:
    random = run_of(tmp_path, TRUTH == 0, 1 - TRUTH)
    with pytest.raises(ValueError, match="other labels of 'label'"):
        compare_with_random_start(CLIPS, {"label": answers(TRUTH == 0)}, {"label": TRUTH}, rows(), random)
