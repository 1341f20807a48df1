"""Cross-validation, end to end: every clip tested once, finished folds kept, a failing one reported."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from avssl.cli import expand_shorthand, parse
from avssl.commands.crossval import Cell, crossval, finished_result, make_cells
from avssl.commands.finetune import finetune
from avssl.config import (
    AudioConfig,
    CrossvalConfig,
    DataConfig,
    FinetuneConfig,
    WandbConfig,
    to_dict,
    to_yaml,
)
from avssl.evaluation.result import read_result, write_result
from avssl.locks import HeldError, hold

SPEAKERS = ["ann", "bob", "cleo"]
SMALL = AudioConfig(options={"embed_dim": 16, "depths": [1, 1, 1, 1]})


def recording(root: Path, digit: int, speaker: str, take: int) -> Path:
    return root / "recordings" / f"{digit}_{speaker}_{take}.wav"


def write(path: Path, digit: int, take: int) -> None:
    """A tone for each digit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(2400) / 8000
    noise = np.random.default_rng(take).standard_normal(len(time))
    wavfile.write(path, 8000, (3000 * (np.sin(2000 * (digit + 1) * time) + 0.1 * noise)).astype(np.int16))


@pytest.fixture
def media(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    for digit in range(3):
        for speaker in SPEAKERS:
            for take in range(4):
                write(recording(tmp_path / "fsdd", digit, speaker, take), digit, take)
    return tmp_path / "fsdd"


def config(media: Path, output: Path, **changes) -> CrossvalConfig:
    data = DataConfig("fsdd", media, clip_seconds=0.3, num_workers=0)
    base = CrossvalConfig(data, checkpoint="none", audio=SMALL, wandb=WandbConfig("disabled"), output=output)
    return replace(base, group_by="speaker", **changes)


def test_a_failing_fold_is_reported_and_a_second_call_runs_only_that(media: Path, tmp_path) -> None:
    for digit in range(3):
        for take in range(4):
            recording(media, digit, "bob", take).write_bytes(b"broken")
    output = tmp_path / "run"
    first = crossval(config(media, output))
    assert first["finished"] and [run["fold"] for run in first["runs"]] == ["speaker ann", "speaker cleo"]
    (failed,) = first["failed"]
    assert failed["fold"] == "speaker bob" and "none of the 12 clips of split 'test' is usable" in failed["error"]
    assert "1 more failed" in (output / "report.html").read_text()
    times = {path: path.stat().st_mtime_ns for path in output.glob("speaker-*-seed-0/result.json")}
    assert len(times) == 2

    for digit in range(3):
        for take in range(4):
            write(recording(media, digit, "bob", take), digit, take)
    second = crossval(config(media, output))
    assert not second["failed"] and [run["fold"] for run in second["runs"]] == [f"speaker {name}" for name in SPEAKERS]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())

    result = json.loads((output / "result.json").read_text())
    scores = [run["metrics"]["digit/top1"] for run in result["runs"]]
    assert result["metrics"]["digit/top1"] == pytest.approx(np.mean(scores))
    assert result["spread"]["digit/top1"]["std"] == pytest.approx(np.std(scores, ddof=1))
    assert result["pooled"]["digit/top1"]["rate"] == pytest.approx(np.mean(scores))  # folds of equal size
    assert sum(run["metrics"]["digit/count"] for run in result["runs"]) == 36
    assert "NMI" in {name.split("/")[1] for name in result["clustering"]}
    # Another cross-validation is compared by the data of all folds: the first call's, of other files, was another.
    assert result["manifest"] != first["manifest"] and result["clip_protocol"] == "1 clip of 0.3 s"


def test_a_full_disk_ends_it_and_the_same_command_goes_on(media: Path, tmp_path, monkeypatch) -> None:
    """It is no verdict on a fold: a report of two folds of three would be another number."""
    settings, finetuned = config(media, tmp_path / "run"), finetune
    seen: list[str] = []

    def fills(one: FinetuneConfig) -> dict[str, object]:
        seen.append(one.output.name)
        if len(seen) == 2:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:  # as the folder of a run tells it
                raise OSError("output: cannot write to it") from error
        return finetuned(one)

    monkeypatch.setattr("avssl.commands.crossval.finetune", fills)
    with pytest.raises(OSError, match="output: cannot write"):
        crossval(settings)
    assert not (tmp_path / "run" / "result.json").exists()
    result = crossval(settings)
    assert len(result["runs"]) == 3 and not result["failed"] and len(seen) == 4 and seen[1] == seen[2]


def test_a_damaged_result_of_a_fold_is_made_again(media: Path, tmp_path, caplog) -> None:
    settings = config(media, tmp_path / "run")
    whole = crossval(settings)
    one, other = ((tmp_path / "run" / f"speaker-{name}-seed-0" / "result.json") for name in ("ann", "bob"))
    values = json.loads(one.read_text())
    values["metrics"]["digit/top1"] /= 2
    one.write_text(json.dumps(values))
    other.write_text(other.read_text()[:100])
    assert crossval(settings)["metrics"] == whole["metrics"]
    for file, name in ((one, "ann"), (other, "bob")):
        assert f"running speaker {name}, seed 0 again" in caplog.text and str(file) in caplog.text
        assert read_result(file)["kind"] == "finetune-linear"


def test_a_fold_that_was_scored_otherwise_is_not_pooled_with_others(tmp_path: Path, caplog) -> None:
    """Earlier versions averaged the logits of several clips, and did not say so."""
    cell = Cell("fold 1", 0, FinetuneConfig(output=tmp_path))
    (tmp_path / "config.yaml").write_text(to_yaml(cell.config))
    for told, kept in (("1 clip of 5 s", True), ("2 clips of 5 s", False), ("2 clips of 5 s, logits averaged", True)):
        write_result(tmp_path / "result.json", {"config": to_dict(cell.config), "clip_protocol": told})
        assert (finished_result(cell) is not None) == kept, told
    assert "2 clips of 5 s, of which logits were averaged: judging fold 1 anew" in caplog.text


def test_what_a_fold_failed_with_shows_no_password(media: Path, tmp_path, monkeypatch) -> None:
    def fails(one: FinetuneConfig) -> dict[str, object]:
        if "bob" in one.output.name:
            raise RuntimeError("GET https://me:SECRET@host/a?token=SECRET")
        return {"finished": True}

    monkeypatch.setattr("avssl.commands.crossval.finetune", fails)
    monkeypatch.setattr("avssl.commands.crossval.report_crossval", lambda *_: {"failed": _[3]})
    assert crossval(config(media, tmp_path / "run"))["failed"][0]["error"] == "RuntimeError: GET https://host/a"


def test_seeds_repeat_all_folds_and_other_settings_are_refused(media: Path, tmp_path) -> None:
    settings = {"folds": 2, "seeds": [0, 3], "head": "linear"}
    result = crossval(config(media, tmp_path / "run", **settings))
    names = {f"part-{part}-of-2-seed-{seed}" for part in (1, 2) for seed in (0, 3)}
    assert {run["folder"] for run in result["runs"]} == names
    assert {path.parent.name for path in (tmp_path / "run").glob("*/result.json")} == names
    assert result["spread"]["digit/top1"]["repeat_std"] is not None
    with pytest.raises(ValueError, match=r"holds a run with label_smoothing = 0\.1, not 0\.3: choose another --output"):
        crossval(config(media, tmp_path / "run", label_smoothing=0.3, **settings))


def test_when_every_fold_fails_the_first_cause_is_told(media: Path, tmp_path) -> None:
    wrong = config(media, tmp_path / "run", head="full", objectives=[{"name": "infonec"}])
    with pytest.raises(ValueError, match=r"all 3 folds failed, the first with .*did you mean 'infonce'"):
        crossval(wrong)
    assert not (tmp_path / "run").exists(), "the corrected command starts from nothing, with other folds, too"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"resume": "some.ckpt"}, "takes auto or none"),
        ({"seeds": [1, 1]}, "give each once"),
        ({"seeds": []}, "at least one"),
    ],
)
def test_contradictory_settings(media: Path, tmp_path, changes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        crossval(config(media, tmp_path / "run", **changes))


def test_a_second_one_in_the_same_folder_is_refused(media: Path, tmp_path) -> None:
    with hold(tmp_path / "crossval", "x"), pytest.raises(HeldError, match=r"cross-validation .*is being written"):
        crossval(config(media, tmp_path / "crossval"))
    assert not (tmp_path / "crossval").exists()


def test_the_runs_are_one_group_of_wandb(media: Path, tmp_path, monkeypatch) -> None:
    def groups() -> set[str | None]:
        return {cell.config.wandb.group for cell in make_cells(settings, tmp_path / "run")}

    settings = config(media, tmp_path / "run")
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert groups() == {"run"}
    monkeypatch.setenv("WANDB_RUN_GROUP", "study")
    assert groups() == {"study"}
    settings.wandb.group = "mine"
    assert groups() == {"mine"}


def test_the_command_line_takes_every_option_of_finetuning(tmp_path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {name: esc10}\noptim: {lr: 0.5, batch_size: 3}\n")
    argv = [
        "--data",
        "esc50",
        "--seeds",
        "0",
        "1",
        "2",
        "--config",
        str(file),
        "--folds",
        "fold=1..5",
        "--optim.lr",
        "1",
    ]
    parsed = parse(CrossvalConfig, expand_shorthand("crossval", argv))
    assert parsed.data.name == "esc50"  # though the file comes later
    assert (parsed.seeds, parsed.folds, parsed.optim.lr, parsed.optim.batch_size) == ([0, 1, 2], "fold=1..5", 1.0, 3)
    parsed = parse(CrossvalConfig, expand_shorthand("crossval", ["--folds", "5", "--group-by", "speaker"]))
    assert (parsed.folds, parsed.group_by) == (5, "speaker")
    assert {*vars(FinetuneConfig())} < {*vars(CrossvalConfig())}
