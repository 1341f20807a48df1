"""A start that fails says what to change, and leaves nothing behind that the corrected command would trip over."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from avssl.commands import finetune as finetuning
from avssl.commands.finetune import finetune
from avssl.commands.pretrain import pretrain
from avssl.config import (
    AudioConfig,
    BottleneckConfig,
    DataConfig,
    FinetuneConfig,
    LogConfig,
    MixupConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    VideoConfig,
    WandbConfig,
)
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.locks import HeldError, hold

AUDIO = AudioConfig(model="mast_pico", options={"embed_dim": 8, "depths": [1, 1, 1, 1]}, num_mels=32, sample_rate=8000)
SHARED = {"audio": AUDIO, "runtime": RuntimeConfig(accelerator="cpu"), "wandb": WandbConfig(mode="disabled")}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def listed(tmp_path) -> str:
    """A manifest of labelled clips; their files are not there, since no start should come that far."""
    rows = [
        {"clip_id": str(k), "path": f"{k}.wav", "split": "train", "label.kind": "ab"[k % 2],
         "has_audio": True, "audio_end": 1.0, "has_video": True, "video_end": 1.0}
        for k in range(20)
    ]  # fmt: skip
    Manifest.from_rows(rows, tmp_path / "media", {"kind": ["a", "b"]}).save(tmp_path / "listed.parquet")
    return str(tmp_path / "listed.parquet")


def data(name: str, **options) -> DataConfig:
    return DataConfig(name=name, clip_seconds=0.5, num_workers=0, **options)


NO_SPLIT = r"no labelled clip to evaluate on"
FINETUNE = {
    "heads": ({"data": {"heads": ["colour"]}}, r"data\.heads.*no head \['colour'\]"),
    "batch size": ({"optim": OptimConfig(batch_size=0)}, r"optim\.batch_size: must be at least 1"),
    "accumulate": ({"optim": OptimConfig(accumulate=0)}, r"optim\.accumulate: must be at least 1"),
    "device": ({"runtime": RuntimeConfig(accelerator="mps")}, r"runtime: "),
    "checkpoint": ({"checkpoint": "nowhere"}, r"nowhere"),
    "no such .ckpt": ({"checkpoint": "nowhere.ckpt"}, r"there is no nowhere\.ckpt"),
    "model": ({"audio": AudioConfig(model="mast_pcio")}, r"mast_pico"),
    "label smoothing": ({"label_smoothing": 1.5}, r"label_smoothing"),
    "head weights": ({"head_weights": {"colour": 1.0}}, r"head_weights"),
    "objectives": ({"objectives": [{"name": "infonse"}]}, r"infonse"),
    "mixup": (
        {"objectives": [{"name": "imc", "modality": "audio"}], "augment": {"mixup": MixupConfig("batch")}},
        r"augment\.mixup",
    ),
    "sampling": ({"data": {"sampling": "shards"}}, r"data\.sampling: 'shards' needs a cache"),
    "train fraction": ({"data": {"train_fraction": 0.0}}, r"data\.train_fraction"),
    "no test split": ({"data": {"test_fraction": 0.0}}, NO_SPLIT),
    "fusion": (
        {"fusion": "bottleneck", "bottleneck": BottleneckConfig(tokens=2)},
        r"fusion: bottleneck needs modality",
    ),
    "resume": ({"resume": "nowhere.ckpt"}, r"resume: there is no file nowhere\.ckpt"),
}


def changed(config, changes: dict):
    """``config`` with ``changes``, of which a dict changes a part of its own."""
    parts = {
        name: replace(getattr(config, name), **value) if name in ("data", "augment") else value
        for name, value in changes.items()
    }
    return replace(config, **parts)


def assert_no_trace(output: Path) -> None:
    assert not output.exists(), sorted(output.rglob("*"))
    assert not list(output.parent.glob(f"{output.name}.*"))


@pytest.mark.parametrize(("changes", "told"), FINETUNE.values(), ids=FINETUNE)
def test_finetuning_that_cannot_start_leaves_no_folder(changes, told, listed, tmp_path) -> None:
    output = tmp_path / "runs" / "run"
    config = FinetuneConfig(data=data(listed), checkpoint="none", head="full", output=output, **SHARED)
    with pytest.raises((ValueError, FileNotFoundError, DataError, OSError), match=told) as raised:
        finetune(changed(config, changes))
    assert "\n" not in str(raised.value)
    assert_no_trace(output)


PRETRAIN = {
    "batch of one": ({"optim": OptimConfig(batch_size=1)}, r"optim\.batch_size: 1 clip at a time.*batch norm"),
    "chunk": ({"optim": OptimConfig(chunk=0)}, r"optim\.chunk: must be at least 1"),
    "video model": ({"video": VideoConfig(model="tinny")}, r"tiny"),
    "no objective": ({"objectives": []}, r"objectives: there is none"),
    "weight": ({"objectives": [{"name": "infonce", "weight": "much"}]}, r"weight must be a number"),
    "mixup": ({"augment": {"mixup": MixupConfig("waveform")}}, r"augment\.mixup"),
    "checkpoint": ({"checkpoint": "nowhere"}, r"nowhere"),
    "validation": ({"data": {"val_fraction": 1.0}}, r"data\.val_fraction: must lie in"),
    "unlabelled probe": ({"online_probe": True, "data": {"val_fraction": 0.0}}, r"online_probe"),
    "clips": ({"data": {"clip_seconds": 0.0}}, r"data\.clip_seconds: must be above 0, got 0\.0$"),
    "frames": (
        {"audio": replace(AUDIO, fixed_frames=100)},
        r"audio\.fixed_frames: clips of 0\.5 s have 48 frames, not 100: .* --audio\.fixed_frames 48$",
    ),
    "betas": ({"optim": OptimConfig(betas=(0.9, 1.5))}, r"beta"),
    "teacher": ({"teacher_momentum": 2.0}, r"teacher_momentum"),
}


@pytest.mark.parametrize(("changes", "told"), PRETRAIN.values(), ids=PRETRAIN)
def test_pretraining_that_cannot_start_leaves_no_folder(changes, told, listed, tmp_path) -> None:
    output = tmp_path / "runs" / "run"
    config = PretrainConfig(data=data(listed, val_fraction=0.2), output=output, **SHARED)
    with pytest.raises((ValueError, FileNotFoundError, DataError), match=told) as raised:
        pretrain(changed(config, changes))
    assert "\n" not in str(raised.value)
    assert_no_trace(output)


def test_clips_of_which_none_can_be_read_leave_no_folder_either(listed, tmp_path) -> None:
    """Found out at the first step, when the folder is there already."""
    output = tmp_path / "runs" / "run"
    config = PretrainConfig(data=data(listed), output=output, **SHARED)
    with pytest.raises(DataError, match="all of the first"):
        pretrain(config)
    assert_no_trace(output)


def test_what_a_killed_start_left_does_not_stand_in_the_way(tmp_path) -> None:
    """Nothing was trained: other settings may run there, and what it held out is forgotten."""
    for kind, pitch in {"low": 300.0, "high": 2000.0}.items():
        for split in ("train", "test"):
            (tmp_path / "clips" / split / kind).mkdir(parents=True)
            sound = np.sin(2 * np.pi * pitch * np.arange(4000) / 8000) * 9000
            wavfile.write(tmp_path / "clips" / split / kind / "0.wav", 8000, sound.astype(np.int16))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 5\nhead: full\n")
    (run / "held_out.json").write_text("{}")
    result = finetune(FinetuneConfig(data=data(str(tmp_path / "clips")), checkpoint="none", output=run, **SHARED))
    assert result["finished"] and not (run / "held_out.json").exists()


def test_what_was_in_the_folder_before_stays(listed, tmp_path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(DataError):
        pretrain(PretrainConfig(data=data(listed), output=output, **SHARED))
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("junk", [b"", b"no checkpoint", b"\x80", bytes(range(256)), b"a: 1\n", b"PK\x03\x04 zip"])
def test_a_file_that_is_no_checkpoint_is_one_line(junk, listed, tmp_path) -> None:
    file = tmp_path / "junk.ckpt"
    file.write_bytes(junk)
    configs = {
        finetune: FinetuneConfig(data=data(listed), checkpoint=str(file), output=tmp_path / "run"),
        pretrain: PretrainConfig(data=data(listed), checkpoint=str(file), output=tmp_path / "run"),
    }
    for start, config in configs.items():
        with pytest.raises(ValueError, match=r"junk\.ckpt is not a checkpoint of avssl") as raised:
            start(config)
        assert "\n" not in str(raised.value)
    assert_no_trace(tmp_path / "run")


@pytest.mark.parametrize(
    "state",
    [
        {"settings": 3},
        {"settings": {"kind": "pair"}},
        {"settings": {"kind": "pair", "pair": {"bogus": 1}}, "average": None, "task": {}},
        {"settings": {"kind": "classifier"}},
    ],
)
def test_a_checkpoint_of_other_settings_is_one_line(state, listed, tmp_path) -> None:
    torch.save(state, tmp_path / "other.ckpt")
    config = PretrainConfig(data=data(listed), checkpoint=str(tmp_path / "other.ckpt"), output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"other\.ckpt (is not a checkpoint|do not fit)") as raised:
        pretrain(config)
    assert "\n" not in str(raised.value)


def test_a_folder_in_which_another_process_trains_is_refused_at_once(listed, tmp_path) -> None:
    output = tmp_path / "run"
    tuning = FinetuneConfig(data=data(listed), checkpoint="none", output=output, **SHARED)
    for start, config in ((finetune, tuning), (pretrain, PretrainConfig(data=data(listed), output=output, **SHARED))):
        with (
            hold(output, "run"),
            pytest.raises(HeldError, match=r"run .*run is being written by .*, process \d+, since"),
        ):
            start(config)
    assert_no_trace(output)


@pytest.fixture
def tiny_run(tmp_path) -> FinetuneConfig:
    for kind, pitch in {"low": 300.0, "high": 2000.0}.items():
        for k in range(6):
            (tmp_path / "clips" / kind).mkdir(parents=True, exist_ok=True)
            sound = np.sin(2 * np.pi * (pitch + 10 * k) * np.arange(4000) / 8000) * 9000
            wavfile.write(tmp_path / "clips" / kind / f"{k}.wav", 8000, sound.astype(np.int16))
    return FinetuneConfig(
        data=data(str(tmp_path / "clips")),
        checkpoint="none",
        head="full",
        optim=OptimConfig(max_steps=2, batch_size=4),
        log=LogConfig(every=1),
        output=tmp_path / "run",
        **SHARED,
    )


def test_what_another_process_trained_while_this_one_got_ready_is_kept(tiny_run, tmp_path, monkeypatch) -> None:
    open_splits = finetuning.open_splits

    def while_another_trains(*args, **options):
        metrics = tmp_path / "run" / "metrics.jsonl"
        metrics.parent.mkdir()
        metrics.write_text('{"step": 1}\n')
        return open_splits(*args, **options)

    monkeypatch.setattr(finetuning, "open_splits", while_another_trains)
    with pytest.raises(HeldError, match="another process has trained in"):
        finetune(tiny_run)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_the_corrected_command_runs_and_an_old_run_comes_back(tiny_run, tmp_path, caplog) -> None:
    config = tiny_run
    with pytest.raises(DataError):
        finetune(changed(config, {"data": {"heads": ["lable"]}}))
    first = finetune(config)
    assert first["finished"]
    # Starting over fails: the run that was put aside is put back.
    caplog.set_level(logging.INFO)
    for path in (tmp_path / "clips").rglob("*.wav"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")  # scanned anew, and then gone
    broken = replace(
        config,
        resume="none",
        augment=replace(config.augment, mixup=MixupConfig()),
        optim=replace(config.optim, ema=2.0),
    )
    with pytest.raises(ValueError, match="ema"):
        finetune(broken)
    assert (tmp_path / "run" / "result.json").is_file() and len(list(tmp_path.glob("run*"))) == 1


def test_a_long_run_on_a_cpu_is_told_before_anything_is_written(listed: str, tmp_path, caplog) -> None:
    optim = OptimConfig(batch_size=1, epochs=1e8)  # no batch to train on, which is found out after the estimate
    with pytest.raises(ValueError, match="batch norm"):
        pretrain(PretrainConfig(data=data(listed), optim=optim, output=tmp_path / "run", **SHARED))
    assert "no GPU is used: on this CPU training takes about" in caplog.text and not (tmp_path / "run").exists()
