"""Which weights a run evaluates and exports, and which ones a new run starts from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.io import wavfile
from torch import nn

from avssl.checkpoint import read_checkpoint
from avssl.commands.finetune import finetune
from avssl.commands.pretrain import pretrain
from avssl.config import (
    AudioConfig,
    DataConfig,
    FinetuneConfig,
    LogConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    VideoConfig,
    WandbConfig,
)
from avssl.loading import load
from avssl.tracking import read_rows
from avssl.training.initialization import initial_pair, read_start

DEMO = DataConfig(
    options={"pretrain": 16, "train_per_class": 1, "test_per_class": 1},
    clip_seconds=0.5,
    eval_clips=1,
    num_frames=4,
    frame_size=32,
    num_workers=0,
    val_fraction=0.25,
)
AUDIO = AudioConfig(model="mast_pico", options={"embed_dim": 8, "depths": [1, 1, 1, 1]}, num_mels=32)
VIDEO = VideoConfig(model="tiny", crop_size=24)
SHARED = {"runtime": RuntimeConfig(accelerator="cpu"), "wandb": WandbConfig(mode="disabled")}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own, in which the small demo set is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A table of low and high tones. Labels of the validation are swapped: the more is learned, the worse it gets."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["path,label,split"]
    for kind, pitch, other in (("low", 300.0, "high"), ("high", 2000.0, "low")):
        for k in range(12):
            sound = np.sin(2 * np.pi * (pitch + 10 * k) * np.arange(4000) / 8000) * 9000
            wavfile.write(folder / f"{kind}{k}.wav", 8000, sound.astype(np.int16))
            label, split = (kind, "train") if k < 8 else (other, "val") if k < 10 else (kind, "test")
            lines.append(f"{kind}{k}.wav,{label},{split}")
    (folder / "tones.csv").write_text("\n".join(lines) + "\n")
    return folder / "tones.csv"


@pytest.fixture(scope="module")
def finetuned(clips, tmp_path_factory) -> FinetuneConfig:
    """The config of a run that is done, with a validation at each of its 12 steps."""
    config = FinetuneConfig(
        data=DataConfig(name=str(clips), clip_seconds=0.5, num_workers=0),
        checkpoint="none",
        head="full",
        audio=replace(AUDIO, sample_rate=8000),
        optim=OptimConfig(batch_size=8, max_steps=12, lr=3e-3, warmup=0.5),
        log=LogConfig(every=5, validate_every=1),
        output=tmp_path_factory.mktemp("runs") / "finetuned",
        **SHARED,
    )
    finetune(config)
    return config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(pretraining(folder, audio=AUDIO, video=VIDEO))
    return folder


def pretraining(output: Path, **options) -> PretrainConfig:
    given = {"data": DEMO, "embedding_dim": 16, "optim": OptimConfig(batch_size=6, max_steps=4)}
    given |= {"log": LogConfig(every=1, validate_every=1)}
    return PretrainConfig(output=output, **SHARED | given | options)


def best_step(run: Path, metric: str) -> int:
    rows = [row for row in read_rows(run / "metrics.jsonl") if metric in row]
    best = max(row[metric] for row in rows)
    return max(row["step"] for row in rows if row[metric] == best)


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_the_best_classifier_is_evaluated_and_exported(finetuned: FinetuneConfig) -> None:
    run = finetuned.output
    weights = json.loads((run / "result.json").read_text())["weights"]
    assert (weights["use"], weights["metric"]) == ("best", "val/label/top1") and weights["value"] > 0
    assert weights["step"] == best_step(run, "val/label/top1") < 12, "in the end it is wrong on every clip"
    best, last = (load(run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    exported = load(run).audio_encoder
    assert same(exported, best.audio_encoder) and not same(exported, last.audio_encoder)


def test_the_last_weights_can_be_asked_for_instead(finetuned: FinetuneConfig) -> None:
    """Of the same run: it is not trained again."""
    result = finetune(replace(finetuned, log=replace(finetuned.log, use="last")))
    assert result["weights"] == {"use": "last", "step": 12}
    last = load(finetuned.output / "checkpoints" / "last.ckpt")
    assert same(load(finetuned.output).audio_encoder, last.audio_encoder)
    assert finetune(finetuned)["weights"]["use"] == "best"


def test_pictures_that_fail_cost_a_run_nothing_else(finetuned, pretrained, tmp_path, monkeypatch, caplog) -> None:
    def fail(*_, **__):
        raise RuntimeError("bad glyph")

    monkeypatch.setattr(Figure, "savefig", fail)
    for folder in (finetuned.output, pretrained):
        shutil.copytree(folder, tmp_path / folder.name)
        for name in ("result.json", "report.html"):
            (tmp_path / folder.name / name).unlink()
    finetune(replace(finetuned, output=tmp_path / finetuned.output.name))
    pretrain(pretraining(tmp_path / pretrained.name, audio=AUDIO, video=VIDEO))
    for folder in (finetuned.output, pretrained):
        before, after = (json.loads((run / "result.json").read_text()) for run in (folder, tmp_path / folder.name))
        assert after["metrics"] == before["metrics"]
        assert "data:image" in (folder / "report.html").read_text()
        assert "data:image" not in (tmp_path / folder.name / "report.html").read_text()
        assert not list((tmp_path / folder.name / "pictures").glob("*.png")), "an earlier one is not this run's"
    for name in ("curves", "confusion-label", "retrieval"):
        assert f"{name}.png is left out, it cannot be drawn: RuntimeError: bad glyph" in caplog.text


def test_the_best_pair_is_what_its_run_means(pretrained: Path) -> None:
    result = json.loads((pretrained / "result.json").read_text())
    weights = result["weights"]
    assert result["retrieval"] == {"projection": "infonce", "trained": True}
    assert weights["step"] == best_step(pretrained, "val/audio_to_video/R@1")
    best = read_checkpoint(pretrained / "checkpoints" / "best.ckpt")
    assert best["progress"]["step"] == weights["step"]
    pair = load(pretrained).pair
    assert all(torch.equal(value, best["task"][f"pair.{name}"]) for name, value in pair.state_dict().items())
    assert same(load(pretrained / "audio_encoder").model, pair.audio)


def test_without_a_validation_the_last_weights_are_used(tmp_path) -> None:
    audio = replace(AUDIO, pad="edge")
    config = pretraining(tmp_path / "run", data=replace(DEMO, val_fraction=0.0), audio=audio, video=VIDEO)
    result = pretrain(config)
    assert result["weights"] == {"use": "last", "step": 4} and result["pad"] == "edge"


def test_pretraining_starts_from_a_run_on_other_data_with_its_own_schedule(pretrained: Path, tmp_path) -> None:
    """Encoders are the run's, though no settings of them are given; its step is not."""
    other = replace(DEMO, options=DEMO.options | {"pretrain": 12})
    optim = OptimConfig(batch_size=6, max_steps=2, lr=1e-6)
    result = pretrain(pretraining(tmp_path / "run", data=other, checkpoint=str(pretrained), optim=optim))
    parts = dict.fromkeys(("audio", "video", "infonce_projection"), 1.0)
    assert result["start"] == {"checkpoint": str(pretrained)} | parts
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row] == [1, 2]
    before, after = load(pretrained).pair, load(tmp_path / "run").pair
    assert after.settings["audio_options"]["embed_dim"] == 8 and after.settings["crop_size"] == 24
    for name in ("audio", "video"):
        state = getattr(before, name).state_dict()
        for key, value in getattr(after, name).named_parameters():
            torch.testing.assert_close(value, state[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("what", ["run", "export", "best.ckpt", "classifier", "classifier.ckpt"])
def test_what_a_checkpoint_holds_is_loaded_and_what_is_new_is_said(
    what: str, pretrained: Path, finetuned: FinetuneConfig, tmp_path, caplog
) -> None:
    paths = {
        "run": pretrained,
        "export": pretrained / "audio_encoder",
        "best.ckpt": pretrained / "checkpoints" / "best.ckpt",
        "classifier": finetuned.output,
        "classifier.ckpt": finetuned.output / "checkpoints" / "best.ckpt",
    }
    caplog.set_level("INFO")
    options = {} if what in ("run", "best.ckpt") else {"video": VIDEO}
    config = pretraining(tmp_path, checkpoint=str(paths[what]), embedding_dim=8, **options)
    started = initial_pair(config, read_start(config.checkpoint))
    whole = what in ("run", "best.ckpt")
    assert started.report["audio"] == 1.0 and started.report["video"] == (1.0 if whole else "new")
    assert started.report["infonce_projection"] == "new", "the embedding is narrower"
    assert f"audio 100%, video {'100%' if whole else 'new'}, infonce_projection new" in caplog.text
    state = load(paths[what]).audio_encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in started.pair.audio.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"audio": replace(AUDIO, options={"embed_dim": 16})}, r"audio\.options\.embed_dim: .* has 8, not 16"),
        ({"audio": replace(AUDIO, num_mels=64)}, r"audio\.num_mels: .* has 32, not 64"),
        ({"video": VideoConfig(model="tiny_motion", crop_size=24)}, r"video\.model: .* has 'tiny', not 'tiny_motion'"),
        ({"data": replace(DEMO, num_frames=8)}, r"data\.num_frames: .* has 4, not 8"),
    ],
)
def test_encoders_that_are_not_the_checkpoints_are_refused(changes, told, pretrained: Path, tmp_path) -> None:
    with pytest.raises(ValueError, match=told):
        pretrain(pretraining(tmp_path / "run", checkpoint=str(pretrained), **changes))
    assert not (tmp_path / "run").exists()


def test_an_ended_schedule_is_not_resumed_but_started_from(pretrained: Path, tmp_path) -> None:
    config = pretraining(tmp_path / "run", audio=AUDIO, video=VIDEO)
    last = str(pretrained / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"has ended, at step 4 of 4: to train on, give --checkpoint"):
        pretrain(replace(config, resume=last))
    longer = replace(config, resume=last, optim=replace(config.optim, max_steps=8))
    with pytest.raises(ValueError, match=r"optim\.max_steps = 4, not 8: .*--checkpoint to start from its weights"):
        pretrain(longer)
    assert not (tmp_path / "run").exists()


def test_other_data_is_not_resumed_but_started_from(pretrained: Path, tmp_path) -> None:
    other = pretraining(tmp_path / "run", audio=AUDIO, video=VIDEO, data=replace(DEMO, options={"pretrain": 12}))
    with pytest.raises(ValueError, match=r"holds a run with data\.options.*--checkpoint to start from its weights"):
        pretrain(replace(other, resume=str(pretrained / "checkpoints" / "last.ckpt")))


def test_a_run_is_not_continued_on_clips_that_have_changed(finetuned: FinetuneConfig, clips: Path) -> None:
    listed, before = clips.read_text(), (finetuned.output / "result.json").read_bytes()
    clips.write_text(listed.replace("low0.wav,low,train\n", ""))
    try:
        with pytest.raises(
            ValueError, match=r"is of a run on other clips than data .*tones\.csv has now.*give --checkpoint"
        ):
            finetune(finetuned)
    finally:
        clips.write_text(listed)
    assert (finetuned.output / "result.json").read_bytes() == before
    assert finetune(finetuned)["finished"], "with the clips of before it goes on"
