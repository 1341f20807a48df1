"""The whole way on a small demo set through the tools that users run: pretrain, fine-tune, evaluate, kill, resume."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from forked_tools import ForkedTools
from offline_runs import history, read_offline_run

import mast
from avssl.tracking import read_rows
from avssl.tracking.loggers import is_constant

ROOT = Path(__file__).parents[3]
SMALL = ["--audio.options", "{embed_dim: 16, depths: [1, 1, 1, 1]}", "--audio.num_mels", "64"]
DATA = "{pretrain: 48, train_per_class: 2, test_per_class: 2}"
COMMON = ["--data.options", DATA, "--data.num_workers", "0", "--data.clip_seconds", "1.0", "--wandb.mode", "offline"]
STEPS = ["--optim.max_steps", "6", "--optim.batch_size", "8", "--log.every", "1", "--log.checkpoint_every", "2"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """A cache of its own with a small demo set in it, and one thread, so that results are the same on any machine."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"AVSSL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tool(environment, forked_tools: ForkedTools) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a tool, or another script, given by its path."""

    def run(name: str | Path, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        script = name if isinstance(name, Path) else ROOT / "tools" / f"{name}.py"
        return forked_tools.run(script, list(arguments), environment=environment | variables, cwd=cwd)

    return run


def pretrain_arguments(output: Path) -> list[str]:
    validation = ["--data.val_fraction", "0.2", "--log.validate_every", "3"]
    validation += ["--online_probe", "true", "--collapse_rank", "100"]  # every embedding of 8 clips is below that
    return [*SMALL, *COMMON, *STEPS, *validation, "--output", str(output)]


@pytest.fixture(scope="module")
def pretrained(tool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    done = tool("pretrain", *pretrain_arguments(folder), "--tensorboard", "true", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    folder.with_name("told.txt").write_text(done.stderr)
    return folder


def test_pretraining_leaves_a_whole_run(pretrained: Path) -> None:
    files = {str(path.relative_to(pretrained)) for path in pretrained.rglob("*") if path.is_file()}
    expected = {"config.yaml", "metrics.jsonl", "speed.jsonl", "result.json", "report.html"}
    expected |= {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "audio_encoder/model.safetensors"}
    expected |= {"pictures/curves.png", "pictures/retrieval.png"}
    assert expected <= files
    rows = read_rows(pretrained / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert {"train/lr", "train/infonce/temperature"} <= rows[0].keys()
    assert [row["step"] for row in rows if "val/audio_to_video/R@1" in row] == [3, 6]
    result = json.loads((pretrained / "result.json").read_text())
    assert 0 <= result["metrics"]["audio_to_video/R@1"] <= 1
    assert result["metrics"]["count"] == result["coverage"]["evaluated"]["expected"]
    assert result["coverage"]["pretrain"].items() >= {"expected": 48, "usable": 48, "reasons": {}}.items()
    assert list(pretrained.glob("tensorboard/events.out.tfevents.*"))


def test_pretraining_tells_its_numbers_and_how_to_go_on(pretrained: Path) -> None:
    told = pretrained.with_name("told.txt").read_text()
    metrics = json.loads((pretrained / "result.json").read_text())["metrics"]
    keys = ["video_to_audio/R@1", "video_to_audio/R@1_low", "video_to_audio/R@1_high", "chance/R@1"]
    value, low, high, chance = (f"{metrics[key]:.1%}" for key in keys)
    assert re.search(rf"video to audio R@1, [^:]*: {value} \({low} to {high}; chance {chance}\)", told)
    assert f"report: {pretrained / 'report.html'}" in told
    following = told[told.index("next: ") :].splitlines()
    assert following[0].startswith(f"next: avssl finetune --checkpoint {pretrained} --data demo --data.options ")
    assert following[1].startswith(f"   or: avssl evaluate --checkpoint {pretrained} --data demo --data.options ")
    assert "wandb sync " in told


def test_summary_of_a_run_says_what_model_data_and_step_it_is(pretrained: Path) -> None:
    records = read_offline_run(pretrained)
    summary = {item.key: json.loads(item.value_json) for record in records["summary"] for item in record.summary.update}
    result = json.loads((pretrained / "result.json").read_text())
    audio = mast.from_pretrained(pretrained / "audio_encoder").model
    assert summary["parameters/audio"] == sum(part.numel() for part in audio.parameters())
    assert summary["parameters/pair"] > summary["parameters/audio"] + summary["parameters/video"] > 0
    assert summary["data/digest"] == result["manifest"]
    assert (summary["best/step"], summary["best/val/audio_to_video/R@1"]) == (
        result["weights"]["step"],
        result["weights"]["value"],
    )


def test_pretraining_logs_diagnostics_a_probe_and_what_sweeps_search_for(pretrained: Path) -> None:
    rows = read_rows(pretrained / "metrics.jsonl")
    train, val = [row for row in rows if "train/loss" in row], [row for row in rows if "val/count" in row]
    for row in train:
        assert 1 <= row["train/diagnostics/audio_rank"] <= 8 and 1 <= row["train/diagnostics/video_feature_rank"] <= 8
        assert 0 <= row["train/diagnostics/alignment"] <= 4
        assert 1 <= row["train/infonce/effective_negatives"] <= 7
    for row in val:
        assert 0 <= row["val/event/probe_top1"] <= 1
        assert -8 <= row["val/diagnostics/video_uniformity"] <= 0
    records = read_offline_run(pretrained)
    (alert,) = [record.alert.text for record in records["alert"]]
    assert "step 6: the embedding is collapsing" in alert and "below collapse_rank 100" in alert
    history_rows = history(records)
    for row in rows:
        changing = {key: value for key, value in row.items() if not is_constant(key)}
        assert any(changing.items() <= logged.items() for logged in history_rows), "W&B has what the metrics file has"
    for path in (ROOT / "configs" / "sweeps").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["metric"]["name"] in train[0].keys() | val[0].keys()


@pytest.mark.parametrize("head", ["linear", "full"])
def test_finetuning_and_evaluation_agree(head: str, pretrained: Path, tool, tmp_path) -> None:
    output = tmp_path / head
    common = [*COMMON, "--checkpoint", str(pretrained), "--output", str(output)]
    done = tool("finetune", *common, *STEPS, "--head", head, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((output / "result.json").read_text())
    told = rf"event top-1, [^:\n]* of 1 s[^:\n]*: {result['metrics']['event/top1']:.1%} \([\d.]+% to [\d.]+%\)"
    assert re.search(told, done.stderr)
    assert f"report: {output / 'report.html'}" in done.stderr
    assert f"next: avssl predict --checkpoint {output} FILE..." in done.stderr
    assert {path.name for path in (output / "pictures").iterdir()} >= {"confusion-event.png", "tsne-event.png"}
    assert (output / "report.html").stat().st_size > 10_000
    evaluate = ["--data.options", DATA, "--data.clip_seconds", "1.0", "--data.num_workers", "0"]
    evaluate += ["--evaluations", "[accuracy]"] if head == "full" else []  # by default all that are quick
    done = tool("evaluate", "--checkpoint", str(output), *evaluate, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((output / "evaluate-demo" / "result.json").read_text())
    assert again["metrics"]["event/top1"] == pytest.approx(result["metrics"]["event/top1"])
    origin = json.loads((pretrained / "wandb_artifact.json").read_text())
    records = read_offline_run(output)
    (artifact,) = [r.artifact for r in read_offline_run(pretrained)["artifact"] if r.artifact.type == "model"]
    assert (artifact.name, artifact.digest) == (origin["name"], origin["digest"])
    updates = [item for record in records["config"] for item in record.config.update]
    (used,) = [json.loads(item.value_json) for item in updates if item.key == "pretrained_from"]
    del origin["sha256"]  # of the file itself
    assert origin.items() <= used.items()
    (artifact,) = [record.artifact for record in records["artifact"] if record.artifact.type == "model"]
    assert json.loads(artifact.metadata)["finetuned_on"] == "demo"
    loaded = mast.from_pretrained(output / "audio_encoder")  # without avssl
    assert loaded.model.num_classes == len(loaded.labels["event"]) >= 10


def test_evaluation_of_a_pretrained_pair(pretrained: Path, tool, tmp_path) -> None:
    arguments = [
        "--data.options",
        DATA,
        "--data.clip_seconds",
        "1.0",
        "--data.num_workers",
        "0",
        "--output",
        str(tmp_path),
    ]
    done = tool("evaluate", "--checkpoint", str(pretrained), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    before = json.loads((pretrained / "result.json").read_text())["metrics"]
    assert metrics["video_to_audio/R@5"] == pytest.approx(before["video_to_audio/R@5"])
    assert "probe/event/top1" in metrics and "event/NMI" in metrics


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_equals_uninterrupted(number: int, pretrained: Path, tool, tmp_path) -> None:
    output = tmp_path / "killed"
    script = Path(__file__).with_name("struck_pretrain.py")
    strike = f"{int(number)} 0 2"  # two of the three checkpoints are written
    struck = tool(script, *pretrain_arguments(output), cwd=tmp_path, STRIKE=strike)
    assert struck.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert not (output / "result.json").exists()
    done = tool("pretrain", *pretrain_arguments(output), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert (output / "metrics.jsonl").read_bytes() == (pretrained / "metrics.jsonl").read_bytes()
    ids = {path.name.split("-")[-1] for path in output.glob("wandb/offline-run-*")}
    assert len(ids) == 1, "a resumed run continues the same W&B run"


def test_other_settings_in_the_same_folder_are_refused(pretrained: Path, tool, tmp_path) -> None:
    arguments = [*pretrain_arguments(pretrained), "--optim.lr", "0.5"]
    done = tool("pretrain", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "optim.lr = 0.0005, not 0.5" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--checkpoint", "none", "--data.heads", "[colour]"], "data.heads"),
        (["--checkpoint", "none", "--audio.model", "mast_bas"], "mast_base"),
        (["--checkpoint", "none", "--output", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, told, tool, tmp_path) -> None:
    done = tool("finetune", *COMMON, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_classifier_of_other_classes_is_refused(tool, tmp_path) -> None:
    folder = tmp_path / "other"
    mast.save_pretrained(
        mast.create_model("mast_pico", num_classes=2, embed_dim=16, depths=[1, 1, 1, 1]),
        folder,
        frontend=mast.LogMel(),
        labels={"event": ["cat", "dog"]},
    )
    arguments = ["--data", "demo", "--data.options", DATA, "--checkpoint", str(folder), "--data.num_workers", "0"]
    done = tool("evaluate", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "2 classes that are not those of the data" in done.stderr
