"""Advice on data: sizes, groups, recipe, and the trial."""

import json
from pathlib import Path

import pytest

from avssl.commands import main
from avssl.commands.advise import advice_of, recipe_for

ALONE = {"clips": 900, "labelled": 900, "groups": 900, "by": []}
SPOKEN = {"clips": 9000, "labelled": 300, "groups": 40, "by": ["speaker"]}


def found(verdict: str, low: float, high: float) -> dict:
    told = {"metric": "top1", "random": 0.5, "pretrained": 0.5 + (low + high) / 2, "difference": (low + high) / 2}
    return {"verdict": verdict, "heads": {"word": {**told, "low": low, "high": high}}}


@pytest.mark.parametrize(
    ("clips", "memory", "recipe"),
    [
        (100_000, None, "small"),
        (100_000, 24e9, "base"),
        (100_000, 80e9, "large"),
        (1000, 80e9, "small"),
        (9000, 8e9, "small"),
    ],
)
def test_the_recipe_fits_the_machine_and_the_data(clips: int, memory: float | None, recipe: str) -> None:
    assert recipe_for(clips, memory) == recipe


def test_harm_of_one_head_is_told_whatever_the_other_gains() -> None:
    trial = {"linear": found("helps", 0.02, 0.1), "full": found("hurts", -0.2, -0.1)}
    lines = advice_of({"videos": SPOKEN, "labels": SPOKEN}, "base", trial, 150)
    assert (
        "trial, full head, word top1: 50.0% from random weights, 35.0% pretrained, -15.0 points (-20.0 to -10.0)"
        in lines
    )
    assert lines[-1].startswith("pretraining hurts in this trial: start from random weights")
    assert not any("column (speaker" in line for line in lines)
    helped = advice_of({"videos": SPOKEN, "labels": SPOKEN}, "base", {"full": found("helps", 0.02, 0.1)}, 150)
    assert helped[-1].startswith("pretraining pays")
    level = advice_of({"videos": SPOKEN, "labels": SPOKEN}, "base", {"full": found("no difference", -0.1, 0.1)}, 150)
    assert level[-1].startswith("no difference after 150 steps")


def test_sources_that_are_not_named_and_labels_that_are_not_there_are_told() -> None:
    lines = advice_of({"videos": ALONE, "labels": ALONE | {"labelled": 0}}, "small", {}, 150)
    assert sum("no two clips are known to share a speaker" in line for line in lines) == 2
    assert any(line.startswith("fewer than 5000 clips") for line in lines)
    assert lines[-1].startswith("no labels: nothing was tried")
    few = advice_of({"videos": SPOKEN | {"groups": 2}, "labels": SPOKEN}, "small", {}, 0)
    assert "--data: only 2 groups: what is held out says little of new ones" in few


def test_a_trial_says_what_pretraining_gains(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    options = "{pretrain: 12, train: 24, val: 0, test: 24, sources: 8}"
    small = "{audio.options: {embed_dim: 8, depths: [1, 1, 1, 1]}, video.crop_size: 24, data.frame_size: 32, "
    small += "data.num_frames: 4, data.num_workers: 0, optim.batch_size: 4, runtime.accelerator: cpu}"
    command = ["advise", "--data", "demo-sources", "--options", options, "--steps", "2", "--settings", small]
    assert main([*command, "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "to pretrain on: 60 clips with sound and pictures in all splits, 10 groups by speaker" in out
    assert "to fine-tune on: 48 labelled clips of 60" in out
    told = json.loads((tmp_path / "run" / "advice.json").read_text())
    for head in ("linear", "full"):
        other = json.loads((tmp_path / "run" / f"{head}-random" / "result.json").read_text())["metrics"]
        assert told["trial"][head]["heads"]["content"]["random"] == other["content/top1"]
        assert f"trial, {head} head, content top1: {other['content/top1']:.1%} from random weights" in out
    assert (tmp_path / "run" / "pretrain" / "result.json").is_file()


def test_steps_below_0_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["advise", "--data", "demo", "--steps", "-1"])
    assert "--steps must be at least 0" in capsys.readouterr().err
