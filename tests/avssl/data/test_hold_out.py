"""Labelled data without a test split: what is held out, that it stays held out, and what is said of it."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.io import wavfile

from avssl.commands.evaluate import evaluate
from avssl.commands.finetune import finetune
from avssl.config import (
    AudioConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    OptimConfig,
    RuntimeConfig,
    WandbConfig,
)
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits, check_labelled, open_splits, settle_clip_seconds

AUDIO = AudioConfig(model="mast_pico", options={"embed_dim": 8, "depths": [1, 1, 1, 1]}, num_mels=32, sample_rate=8000)
PITCHES = {"low": 300.0, "high": 2000.0}


def write(folder: Path, name: str, pitch: float, seed: int) -> None:
    waveform = 0.2 * np.sin(2 * np.pi * pitch * np.arange(4000) / 8000)
    waveform += 0.05 * np.random.default_rng(seed).standard_normal(4000)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(folder / name, 8000, (waveform * 32767).astype(np.int16))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two classes of twelve clips, which has no splits."""
    for kind, pitch in PITCHES.items():
        for k in range(12):
            write(tmp_path / "clips", f"{kind}/{k}.wav", pitch, k)
    return tmp_path / "clips"


def data(name: str | Path, **options) -> DataConfig:
    return DataConfig(name=str(name), clip_seconds=0.5, num_workers=0, **options)


def probe(folder: Path, output: Path, **options) -> FinetuneConfig:
    return FinetuneConfig(
        data=data(folder),
        checkpoint="none",
        audio=AUDIO,
        runtime=RuntimeConfig(accelerator="cpu"),
        wandb=WandbConfig(mode="disabled"),
        output=output,
        **options,
    )


@pytest.mark.parametrize(
    ("lengths", "trained", "expected"),
    [
        ((1.5, 2.0), None, 2.0),
        ((1.5, 9.0), None, 4.0),
        ((1.5, 2.0), 10.0, 2.0),
        ((6.0, 9.0), 5.0, 5.0),
        ((0.2, 0.3), None, 1.0),
        ((2.0,) * 39 + (30.0,), None, 2.0),
    ],
)
def test_clips_are_no_longer_than_nearly_all_of_the_data(tmp_path, caplog, lengths, trained, expected) -> None:
    rows = [
        {
            "clip_id": str(k),
            "path": f"{k}.wav",
            "split": "train",
            "duration": seconds,
            "has_audio": True,
            "has_video": False,
        }
        for k, seconds in enumerate(lengths)
    ]
    for row in rows:
        (tmp_path / row["path"]).touch()
        row |= {"audio_start": 0.0, "audio_end": row["duration"], "error": ""}
    Manifest.from_rows(rows, tmp_path, {}).save(tmp_path / "own.parquet")
    config = DataConfig(str(tmp_path / "own.parquet"))
    assert settle_clip_seconds(config, ["audio"], trained).clip_seconds == expected
    assert f"{expected:g} s are taken" in caplog.text
    assert settle_clip_seconds(replace(config, clip_seconds=7.0), ["audio"], trained).clip_seconds == 7.0
    assert settle_clip_seconds(DataConfig("esc50"), ["audio"], trained).clip_seconds == 5.0


def test_a_labelled_folder_works_at_once_and_is_evaluated_on_the_same_clips(folder, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    config = probe(folder, run, seed=5)
    result = finetune(replace(config, data=replace(config.data, clip_seconds=None)))
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["clip_seconds"] == 1.0, "what was used"
    assert "no split 'test': held out 5 of 24 training clips (seed 0)" in caplog.text
    told = result["held_out"]["test"]
    assert result["split"] == "test" and told["seed"] == 0 and told["of"] == 24 and told["fraction"] == 0.2
    assert told == json.loads((run / "result.json").read_text())["held_out"]["test"]
    held_out = json.loads((run / "held_out.json").read_text())["test"]["clip_ids"]
    assert len(held_out) == told["clips"] == result["metrics"]["label/count"]
    assert {clip.split("/")[0] for clip in held_out} == set(PITCHES), "both classes are tested"
    assert result["coverage"]["train"]["usable"] == 24

    # Another seed, a name written otherwise and a clip that came later: the same clips are the test.
    write(folder, "low/0a.wav", PITCHES["low"], 99)
    named = replace(data(folder / ".." / "clips"), clip_seconds=None)
    config = EvaluateConfig(str(run), data=named, evaluations=["accuracy"], seed=1)
    again = evaluate(EvaluateConfig(**vars(config) | {"runtime": RuntimeConfig(accelerator="cpu")}))
    assert "1 s" in again["clip_protocol"] and again["config"]["data"]["clip_seconds"] == 1.0
    assert again["metrics"]["label/count"] == told["clips"]
    assert again["metrics"]["label/top1"] == pytest.approx(result["metrics"]["label/top1"])
    assert again["held_out"]["test"] == told


def test_clips_of_the_training_are_known_again_in_a_copy_and_under_other_splits(folder, tmp_path, caplog) -> None:
    run = tmp_path / "run"
    finetune(probe(folder, run))
    test = set(json.loads((run / "held_out.json").read_text())["test"]["clip_ids"])
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    write(copy, "low/new.wav", PITCHES["low"], 99)

    def evaluated(name: Path) -> dict:
        caplog.clear()
        runtime = RuntimeConfig(accelerator="cpu")
        return evaluate(EvaluateConfig(str(run), data=data(name), evaluations=["accuracy"], runtime=runtime))

    told = evaluated(copy)
    assert told["seen_in_training"] == 0 and told["metrics"]["label/count"] == len(test)
    assert "trained on" not in caplog.text
    rows = ["path,split,label"]
    for kind in PITCHES:
        rows += [f"{kind}/{k}.wav,{'test' if k < 6 else 'train'},{kind}" for k in range(12)]
    (copy / "index.csv").write_text("\n".join(rows) + "\n")
    known = {f"{kind}/{k}.wav" for kind in PITCHES for k in range(6)} - test
    told = evaluated(copy / "index.csv")
    assert told["seen_in_training"] == len(known) > 0 and told["metrics"]["label/count"] == 12
    assert f"{len(known)} of the 12 clips of split 'test' have the ids of clips that the checkpoint was" in caplog.text
    assert f"{len(known)}" in (run / "evaluate-index" / "report.html").read_text()
    caplog.clear()
    config = probe(copy / "index.csv", tmp_path / "again")
    finetune(replace(config, checkpoint=str(run), audio=AudioConfig()))
    assert f"{len(known)} of the 12 test clips have the ids of clips that the checkpoint was" in caplog.text


def test_data_with_a_val_split_alone_are_judged_on_it_and_it_is_said(tmp_path, caplog) -> None:
    for split in ("train", "val"):
        for kind, pitch in PITCHES.items():
            for k in range(4):
                write(tmp_path / "clips" / split, f"{kind}/{k}.wav", pitch, k)
    config = probe(tmp_path / "clips", tmp_path / "run", optim=OptimConfig(max_steps=2, batch_size=4))
    result = finetune(replace(config, head="full"))
    assert "split val both chooses the weights and judges them" in caplog.text
    assert (result["split"], result["held_out"]) == ("val", {}) and result["metrics"]["label/count"] == 8
    assert result["next"][-1].endswith("--split val")
    runtime = RuntimeConfig(accelerator="cpu")
    options = {"data": data(tmp_path / "clips"), "split": "val", "evaluations": ["accuracy"], "runtime": runtime}
    assert evaluate(EvaluateConfig(str(tmp_path / "run"), **options))["metrics"]["label/count"] == 8


def test_a_classifier_is_not_judged_on_a_draw_of_its_own(folder, tmp_path) -> None:
    """Without the list of what was held out, all clips may have been trained on."""
    finetune(probe(folder, tmp_path / "run"))
    (tmp_path / "run" / "held_out.json").unlink()
    config = EvaluateConfig(str(tmp_path / "run"), data=data(folder), runtime=RuntimeConfig(accelerator="cpu"))
    with pytest.raises(DataError, match="has no usable split 'test'; it has train: give --split"):
        evaluate(config)


@pytest.mark.parametrize("split", ["valid", "tset"])
def test_an_unknown_split_is_told_with_the_known_ones(split, folder, tmp_path) -> None:
    finetune(probe(folder, tmp_path / "run"))
    config = EvaluateConfig(str(tmp_path / "run"), data=data(folder), split=split)
    nearest = {"valid": "val", "tset": "test"}[split]
    with pytest.raises(DataError, match=f"no split '{split}' .did you mean '{nearest}'.*pretrain, train, val, test"):
        evaluate(config)


def listed(folder: Path, rows: list[dict], classes: list[str]) -> str:
    """A manifest of clips that need not be there."""
    common = {"has_audio": True, "audio_end": 1.0, "has_video": False, "split": "train"}
    rows = [{"clip_id": str(k), "path": f"{k}.wav"} | common | row for k, row in enumerate(rows)]
    heads = {"kind": classes} if classes else {}
    Manifest.from_rows(rows, folder, heads).save(folder / "listed.parquet")
    return str(folder / "listed.parquet")


def opened(name: str, labelled: bool = True, seed: int = 0, **options) -> Splits:
    return open_splits(DataConfig(name, **options), modalities=("audio",), labelled=labelled, seed=seed)


def values(rows: Manifest | None, column: str) -> set:
    assert rows is not None
    return set(rows.column(column))


@pytest.mark.parametrize(
    ("column", "what"),
    [
        ("path", "file"),
        ("recording", "recording"),
        ("video", "video"),
        ("speaker", "speaker"),
        ("Speaker_ID", "speaker"),
        ("youtube_id", "video"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_clips_of_one_recording_are_on_one_side(labelled: bool, column: str, what: str, tmp_path) -> None:
    rows = [{"label.kind": "ab"[k % 2], column: f"r{k // 5}"} for k in range(100)]
    name = listed(tmp_path, rows, ["a", "b"])
    for seed in range(3):
        splits = opened(name, labelled, seed, val_fraction=0.15)
        parts = [splits.train, splits.val] + ([splits.test] if labelled else [])
        groups = [values(part, column) for part in parts]
        assert not labelled or groups[2] == values(opened(name).test, column), "the test is the same for every seed"
        assert sum(map(len, groups)) == 20 and 10 <= len(splits.val) <= 20
        assert not labelled or len(splits.test) == 20
        assert all(held.summary()["kept_together"] == [what] for held in splits.held_out.values())


def test_few_speakers_do_not_cost_half_of_the_training_clips(tmp_path, caplog) -> None:
    name = listed(tmp_path, [{"speaker": f"s{k % 2}"} for k in range(100)], [])
    assert len(opened(name, labelled=False, val_fraction=0.1).val) == 10
    assert "by speaker it would be 50 %, not 10 %" in caplog.text


def test_a_speaker_that_is_the_class_is_divided(tmp_path) -> None:
    rows = [{"label.speaker": "ab"[k % 2], "speaker": "ab"[k % 2]} for k in range(40)]
    common = {"has_audio": True, "audio_end": 1.0, "has_video": False, "split": "train"}
    rows = [{"clip_id": str(k), "path": f"{k}.wav"} | common | row for k, row in enumerate(rows)]
    Manifest.from_rows(rows, tmp_path, {"speaker": ["a", "b"]}).save(tmp_path / "m.parquet")
    splits = opened(str(tmp_path / "m.parquet"))
    assert np.bincount(splits.test.labels("speaker")).tolist() == [4, 4]


def test_data_with_a_test_or_a_val_split_keep_their_training_clips(tmp_path) -> None:
    for split in ("test", "val"):
        rows = [{"label.kind": "ab"[k % 2], "split": split if k < 10 else "train"} for k in range(40)]
        splits = opened(listed(tmp_path, rows, ["a", "b"]))
        assert len(splits.train) == 30 and not splits.held_out and len(splits.labelled_test) == 10


def test_pretraining_holds_out_no_test(tmp_path) -> None:
    splits = opened(listed(tmp_path, [{"label.kind": "ab"[k % 2]} for k in range(40)], ["a", "b"]), labelled=False)
    assert len(splits.train) == 40 and splits.test is None


@pytest.mark.parametrize("option", ["val_fraction", "test_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_names_its_option(option, value, tmp_path) -> None:
    name = listed(tmp_path, [{"label.kind": "a"}] * 4, ["a"])
    with pytest.raises(ValueError, match=rf"data\.{option}: must lie in"):
        opened(name, **{option: value})


@pytest.mark.parametrize(
    ("rows", "classes", "told"),
    [
        ([{}] * 4, [], r"no labels to fine-tune on: put the files into a folder of each class"),
        ([{"label.kind": None}] * 4, ["a"], r"no training clip has a label of 'kind'"),
        (
            [{"label.kind": "a"}],
            ["a"],
            r"nothing to hold out as one \(data.test_fraction 0.2\): there is only one clip",
        ),
        ([{"label.kind": "a"}, {"label.kind": "b"}], ["a", "b"], r"every class has only one clip"),
        ([{"label.kind": "a"}] * 8, ["a"], r"all training clips are of one class, 'a' of 'kind': there is nothing to"),
        (
            [{"label.kind": "a"}] * 4 + [{"label.kind": "b", "split": "test"}],
            ["a", "b"],
            r"of one class, 'a' of 'kind'",
        ),
        ([{"label.kind": "a"}, {"split": "test"}], ["a"], r"no labelled clip to evaluate on; .*--data.val_fraction"),
    ],
)
def test_data_that_cannot_be_learned_from_say_why(rows, classes, told, tmp_path) -> None:
    name = listed(tmp_path, rows, classes)
    with pytest.raises(DataError, match=told):
        check_labelled(opened(name), name)


def test_one_class_among_several_labels_is_there_or_not(tmp_path) -> None:
    name = listed(tmp_path, [{"label.kind": [0] if k % 2 else []} for k in range(8)], ["a"])
    splits = opened(name)
    assert splits.multilabel == ["kind"] and check_labelled(splits, name) is splits.test


@pytest.mark.parametrize(
    ("labels", "advice"), [("ab", ""), ("aa", ", once they are labelled with two classes or more")]
)
def test_clips_of_sound_alone_are_told_in_words_with_what_trains_on_them(labels: str, advice: str, tmp_path) -> None:
    rows = [{"label.kind": label, "video_error": "no video stream"} for label in labels]
    config = data(listed(tmp_path, rows, ["a", "b"]))
    with pytest.raises(DataError) as raised:
        open_splits(config, modalities=("audio", "video"), labelled=False)
    assert str(raised.value) == (
        f"data {config.name}: none of the 2 clips of split 'train' is usable: 2 x no video stream; avssl finetune "
        f"--modality audio trains on the 2 that have sound{advice}"
    )


def test_classes_that_look_wrong_are_warned_of_once(tmp_path, caplog) -> None:
    rows = [{"label.kind": kind, "split": split} for kind, split in
            [("dog", "train"), ("dog ", "train"), ("Cat", "train"), ("dog", "test"), ("owl", "test")]]  # fmt: skip
    opened(listed(tmp_path, rows, ["dog", "dog ", "Cat", "owl"]))
    told = [record.getMessage() for record in caplog.records if record.name == "avssl.data.splits"]
    warnings = [line for line in told if "are shorter than" not in line]
    assert len(warnings) == 2
    assert "'dog' and 'dog '" in warnings[0] and "no training clip of 'owl'" in warnings[1]
    caplog.clear()
    opened(listed(tmp_path, [{"label.kind": "a"}] * 4, ["a"]))
    assert "'kind' has training clips of a single class" in caplog.text
