"""Evaluation in one call: what it embeds, what it does by default, what it writes, and what it refuses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from scipy.io import wavfile

import mast
from avssl.commands.evaluate import data_as_trained, evaluate
from avssl.config import DataConfig, EvaluateConfig, RuntimeConfig
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.scan import scan
from avssl.evaluation.result import read_predictions
from avssl.loading import load
from avssl.locks import HeldError, hold
from avssl.saved_runs import run_folder, training_settings

CLASSES = ["high", "low", "middle"]
RATE = 16000


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """Tones of 1 s in noise, three pitches: 6 of each to train on, 4 to test on, two test clips without a label."""
    root = tmp_path_factory.mktemp("tones")
    rng, lines = np.random.default_rng(0), ["path,split,label"]
    time = np.arange(RATE) / RATE
    for split, count in (("train", 6), ("test", 4)):
        for number in range(count):
            for name, pitch in zip(CLASSES, (2000, 200, 600), strict=True):
                wave = np.sin(2 * np.pi * pitch * rng.uniform(0.95, 1.05) * time) + rng.normal(size=RATE)
                wavfile.write(root / f"{split}-{name}-{number}.wav", RATE, (4000 * wave).astype(np.int16))
                label = "" if split == "test" and number == 3 and name != "low" else name
                lines.append(f"{split}-{name}-{number}.wav,{split},{label}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


def export(folder: Path, classes: list[str] | None, seed: int = 0) -> Path:
    """An encoder of random weights, or a classifier."""
    torch.manual_seed(seed)
    model = mast.create_model("mast_pico", num_classes=len(classes or []), embed_dim=16, depths=[1, 1, 1, 1])
    labels = {"label": classes} if classes else None
    mast.save_pretrained(model, folder, frontend=mast.LogMel(sample_rate=RATE, num_mels=32), labels=labels)
    return folder


@pytest.fixture
def config(tones, tmp_path, monkeypatch) -> EvaluateConfig:
    """Of an encoder without classes, with a cache of its own."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    data = DataConfig(name=str(tones / "index.csv"), clip_seconds=0.5, num_workers=0)
    checkpoint = str(export(tmp_path / "encoder", None))
    return EvaluateConfig(checkpoint, data, runtime=RuntimeConfig(accelerator="cpu"), output=tmp_path / "out")


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "embeddings").glob("*")}


def test_a_picture_that_fails_costs_no_number(config, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("bad glyph")

    monkeypatch.setattr(Figure, "savefig", fail)
    config.evaluations = ["probe", "pictures"]
    metrics = evaluate(config)["metrics"]
    assert metrics and json.loads((config.output / "result.json").read_text())["metrics"] == metrics
    assert "Linear probe" in (page := (config.output / "report.html").read_text()) and "data:image" not in page
    left_out = [record for record in caplog.records if "is left out" in record.getMessage()]
    assert len(left_out) == 2 and all(record.levelname == "WARNING" for record in left_out)
    assert "map-label.png is left out, it cannot be drawn: ValueError: bad glyph" in caplog.text


def test_the_second_evaluation_reads_no_media(config, tones, tmp_path):
    config.evaluations = ["probe", "knn", "clustering"]
    first = evaluate(config)
    files = cached(tmp_path)
    assert len(files) == 2
    originals = {path: (path.read_bytes(), path.stat()) for path in tones.glob("*.wav")}
    try:
        for path, (data, stat) in originals.items():  # nothing that could be decoded, of the same size and time
            path.write_bytes(b"\xff" * len(data))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        second = evaluate(config)
        with pytest.raises(ValueError, match="not one clip was embedded"):
            evaluate(replace(config, cache=False))
    finally:
        for path, (data, stat) in originals.items():
            path.write_bytes(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert second["metrics"] == first["metrics"] and second["coverage"] == first["coverage"]
    assert cached(tmp_path) == files


def test_other_weights_clips_or_protocols_miss_the_cache_and_copies_of_the_weights_hit_it(config, tones, tmp_path):
    config.evaluations = ["clustering"]
    evaluate(config)
    first = cached(tmp_path)
    again = replace(config, checkpoint=str(export(tmp_path / "copy", None)))
    evaluate(again)
    assert cached(tmp_path) == first
    other = replace(config, checkpoint=str(export(tmp_path / "other", None, seed=1)))
    several = replace(config, data=replace(config.data, eval_clips=2))
    lines = (tones / "index.csv").read_text().splitlines()
    (tones / "fewer.csv").write_text("\n".join(lines[:-1]) + "\n")
    fewer = replace(config, data=replace(config.data, name=str(tones / "fewer.csv")))
    for count, changed in enumerate((other, several, fewer), 2):
        evaluate(changed)
        assert len(cached(tmp_path)) == count


@pytest.mark.parametrize("average", [None, "logits"])
def test_accuracy_is_that_of_the_exported_model_on_the_same_samples(config, tones, tmp_path, average):
    config.checkpoint = str(export(tmp_path / "classifier", CLASSES))
    config.data.eval_clips, config.data.eval_average = 2, average
    result = evaluate(config)
    assert result["evaluations"] == ["accuracy", "clustering", "pictures", "error_analysis"]
    loaded = mast.from_pretrained(tmp_path / "classifier")
    right, wanted = [], {}
    for path in sorted(tones.glob("test-*.wav")):
        name = path.stem.split("-")[1]
        if path.stem.endswith("-3") and name != "low":
            continue
        wave = torch.from_numpy(wavfile.read(path)[1].astype(np.float32) / 32768)
        with torch.inference_mode():
            logits = loaded.model.eval()(loaded.frontend(torch.stack([wave[: RATE // 2], wave[RATE // 2 :]])))
        scores = logits.mean(0) if average else logits.softmax(1).mean(0).log()
        wanted[path.stem] = scores.numpy()
        right.append(CLASSES[int(scores.argmax())] == name)
    kept = read_predictions(tmp_path / "out" / "predictions.parquet")
    for clip_id, scores in zip(kept.clip_ids, kept.scores["label"], strict=True):
        if Path(clip_id).stem in wanted:
            np.testing.assert_allclose(scores, wanted[Path(clip_id).stem], rtol=2e-3, atol=1e-4)
    assert result["metrics"]["label/count"] == len(right) == 10
    assert result["metrics"]["label/top1"] == pytest.approx(np.mean(right))
    assert result["headlines"][0].name == f"label top-1, mean {average or 'probabilities'} of 2 clips of 0.5 s"


def test_every_evaluation_of_a_classifier_is_told_in_result_and_report(config, tmp_path):
    config.checkpoint = str(export(tmp_path / "classifier", CLASSES))
    quick = ["accuracy", "probe", "knn", "clustering", "pictures", "error_analysis"]
    config.evaluations = ["robustness", "few_label", *quick]
    config.few_label_draws, config.worst_classes = 2, 2
    evaluate(config)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["evaluations"][0] == "accuracy" and set(result["evaluations"]) == set(config.evaluations)
    for key in ("split", "clip_protocol", "coverage", "manifest", "seed", "config", "provenance", "checkpoint_digest"):
        assert result[key] is not None, key
    assert result["coverage"]["evaluated"] == {"expected": 12, "evaluated": 12, "share": 1.0, "reasons": {}}
    metrics = result["metrics"]
    for name in ("label/top1", "probe/label/top1", "knn/label/top1", "robustness/noise, SNR -5 dB/label/top1"):
        assert 0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1
    assert metrics["label/NMI_low"] <= metrics["label/NMI"] <= metrics["label/NMI_high"]
    assert metrics["few_label/label/100%/top1"] == pytest.approx(metrics["probe/label/top1"])
    assert {"few_label/label/1%/top1_std", "few_label/label/50%/random_top1"} <= metrics.keys()
    assert result["details"]["knn"]["k"]["label"] in (1, 5, 10)
    page = (tmp_path / "out" / "report.html").read_text()
    for title in ("Classification", "Linear probe", "Nearest neighbours", "Few labels", "Clusters", "Robustness"):
        assert f"<h2>{title}</h2>" in page
    wrong = sum(1 for _ in page.split("data:audio/wav;base64,")) - 1
    assert 1 <= wrong <= 6
    names = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert names >= {"confusion-label.png", "map-label.png", "few-label-label.png", "robustness-label.png"}


def test_an_encoder_learns_to_tell_the_tones_and_damage_is_the_same_again(config):
    config.evaluations = ["probe", "robustness"]
    first = evaluate(config)["metrics"]
    assert first["probe/label/top1"] > 0.8
    config.cache = False
    assert evaluate(config)["metrics"] == first


def test_data_without_a_training_split_is_evaluated_by_what_needs_none(config, tones, tmp_path):
    lines = (tones / "index.csv").read_text().splitlines()
    (tones / "tests.csv").write_text("\n".join([lines[0], *(line for line in lines if ",test," in line)]) + "\n")
    config.data.name = str(tones / "tests.csv")
    assert evaluate(config)["evaluations"] == ["clustering", "pictures"]
    config.checkpoint = str(export(tmp_path / "classifier", CLASSES))
    assert evaluate(config)["evaluations"] == ["accuracy", "clustering", "pictures", "error_analysis"]
    with pytest.raises(ValueError, match="no labelled split 'train'"):
        evaluate(replace(config, evaluations=["knn"]))


def test_several_labels_of_a_clip(config, tones, tmp_path):
    """The tone's class, and for every third clip another label at random; one test clip is unlabelled."""
    rng, rows = np.random.default_rng(0), []
    for path in sorted(tones.glob("*.wav")):
        split, name, number = path.stem.split("-")
        tags = sorted({name, str(rng.choice(CLASSES))}) if int(number) % 3 == 0 else [name]
        tags = None if path.stem == "test-low-3" else tags
        rows.append({"clip_id": path.stem, "path": path.name, "split": split, "label.tags": tags})
    scan(Manifest.from_rows(rows, tones, {"tags": CLASSES}), progress=False).save(tmp_path / "tags.parquet")
    config.data.name = str(tmp_path / "tags.parquet")
    assert evaluate(config)["evaluations"] == ["probe", "knn"]
    config.evaluations, config.few_label_draws = ["probe", "knn", "few_label", "error_analysis", "robustness"], 2
    metrics = evaluate(config)["metrics"]
    assert metrics["probe/tags/mAP"] > 0.7 and metrics["knn/tags/mAP"] > 0.7
    assert metrics["probe/tags/count"] == 11
    assert metrics["few_label/tags/100%/mAP"] == pytest.approx(metrics["probe/tags/mAP"])
    assert metrics["robustness/gain -20 dB/tags/mAP"] <= 1
    assert "taken most often for" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"evaluations": ["kmm"]}, "no evaluation 'kmm'.*knn"),
        ({"evaluations": ["retrieval"]}, "retrieval is not possible here: the checkpoint is no pair"),
        ({"evaluations": ["accuracy"]}, "no classifier"),
        ({"evaluations": ["knn"], "split": "train"}, "judged by itself"),
        ({"evaluations": ["knn"], "knn_k": 0}, "knn_k"),
        ({"evaluations": ["few_label"], "few_label_draws": 0}, "few_label_draws"),
        ({"evaluations": ["error_analysis"], "worst_classes": 0}, "worst_classes"),
        ({"evaluations": []}, "evaluations: the list is empty"),
    ],
)
def test_what_is_not_possible_is_refused(change, told, config):
    with pytest.raises(ValueError, match=told):
        evaluate(replace(config, **change))


def test_a_second_evaluation_into_the_same_folder_is_refused(config) -> None:
    with hold(config.output, "x"), pytest.raises(HeldError, match=r"evaluation .*is being written"):
        evaluate(config)


def test_a_split_that_is_not_there_is_named(config):
    with pytest.raises(DataError, match="no usable split 'val'"):
        evaluate(replace(config, split="val"))


def test_a_split_is_what_it_is_called(config, tones, tmp_path) -> None:
    """Where nothing is pretrained on, "pretrain" is not silently "train"; rows held out are never fitted on."""
    with pytest.raises(DataError, match="no usable split 'pretrain'"):
        evaluate(replace(config, split="pretrain"))
    held_out = replace(config.data, val_fraction=0.3)
    result = evaluate(replace(config, data=held_out, split="val", evaluations=["knn"], knn_k=1))
    assert result["coverage"]["evaluated"]["evaluated"] == 5
    lines = (tones / "index.csv").read_text().splitlines()
    kinds = [line.replace(",train,", ",pretrain,") if "high" in line else line for line in lines]
    (tones / "pretrain.csv").write_text("\n".join(kinds))
    data = replace(config.data, name=str(tones / "pretrain.csv"))
    for split, rows in (("pretrain", 6), ("train", 12)):
        result = evaluate(
            replace(config, data=data, split=split, evaluations=["clustering"] if split == "train" else None)
        )
        assert result["coverage"]["evaluated"]["evaluated"] == rows


def test_a_classifier_is_judged_as_it_was_trained(tones, tmp_path, caplog) -> None:
    """The fold above all: with the data set's default one it would be judged on clips that it was trained on."""
    name = str(tones / "index.csv")
    run = tmp_path / "run"
    export(run / "audio_encoder", CLASSES)
    known = {"name": name, "clip_seconds": 0.5, "eval_clips": 3, "options": {"label": "label"}, "num_frames": 4}
    known["channel"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump({"data": known}))
    loaded = load(run / "audio_encoder", torch.device("cpu"))
    assert (loaded.kind, loaded.name) == ("classifier", "run")
    lying = {run: run, run / "audio_encoder": run, run / "checkpoints" / "last.ckpt": run}
    lying |= {tmp_path / "mean.ckpt": tmp_path, tmp_path / "audio_encoder": tmp_path / "audio_encoder"}
    assert {path: run_folder(path) for path in lying} == lying

    def used(**data: object) -> DataConfig:
        return data_as_trained(DataConfig(**{"name": name, **data}), training_settings(run), loaded)

    assert used() == DataConfig(name, clip_seconds=0.5, eval_clips=3, options={"label": "label"}, channel=1)
    assert used(clip_seconds=1.0, eval_clips=1).clip_seconds == 1.0 and not caplog.records
    assert used(options={"fold": 2}).options == {"fold": 2}
    assert "judged on clips that it was trained on" in caplog.text
    assert used(name="") == used()  # the run's data where none are named
    with pytest.raises(ValueError, match="give --data NAME"):
        data_as_trained(DataConfig(""), training_settings(tmp_path), loaded)
    assert used(name="esc10") == DataConfig("esc10", channel=1) and used(channel=0).channel == 0


def test_data_that_state_no_length_are_cut_as_the_checkpoint_was_trained(tones, tmp_path) -> None:
    for classes in (CLASSES, None):
        run = tmp_path / f"run-{classes is None}"
        export(run / "audio_encoder", classes)
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "elsewhere.csv", "clip_seconds": 0.5}}))
        model = load(run / "audio_encoder", torch.device("cpu"))
        own, known = DataConfig(str(tones / "index.csv")), training_settings(run)
        assert data_as_trained(own, known, model).clip_seconds == 0.5
        assert data_as_trained(replace(own, clip_seconds=1.0), known, model).clip_seconds == 1.0
        assert data_as_trained(DataConfig("esc10"), known, model).clip_seconds is None  # its own 5 s


def test_a_run_that_is_replaced_while_it_is_evaluated_gets_no_result(config, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    export(run / "audio_encoder", None)
    (run / "metrics.jsonl").touch()

    def replaced(names: object, context: object) -> dict[str, object]:
        run.rename(tmp_path / "run-old")
        (run / "evaluate-index").mkdir(parents=True)  # as another command does with --resume none
        return {}

    monkeypatch.setattr("avssl.commands.evaluate.run_evaluations", replaced)
    with pytest.raises(DataError, match="was renamed or replaced while it was evaluated"):
        evaluate(replace(config, checkpoint=str(run), output=None))
    assert not list(run.rglob("result.json"))


@pytest.mark.parametrize(("name", "value"), [("compile", True), ("devices", 2), ("strategy", "fsdp")])
def test_settings_of_training_are_refused(config, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"runtime.{name}: is for training"):
        evaluate(replace(config, runtime=RuntimeConfig(accelerator="cpu", **{name: value})))
