"""Exponential moving average and the mean of checkpoints, against the formulas."""

import os
from pathlib import Path

import pytest
import torch
from forked_tools import ForkedTools
from small_engine import make_engine, stream
from torch import nn

from avssl.checkpoint import read_checkpoint
from avssl.commands.average import average_checkpoints
from avssl.tracking import read_rows
from avssl.training.optimizer import ExponentialAverage

TOOL = Path(__file__).parents[3] / "tools" / "average.py"


def test_average_follows_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = ExponentialAverage(model, 0.5)
    expected = model[0].weight.detach().clone()
    for updates in range(20):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 3))
            model[1].running_mean.add_(1.0)
        average.update_parameters(model)
        decay = min(0.5, (1 + updates) / (10 + updates)) if updates else 0.0  # the first update is a copy
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
        torch.testing.assert_close(average.module[0].weight, expected)
        torch.testing.assert_close(average.module[1].running_mean, model[1].running_mean)
    with pytest.raises(ValueError, match=r"optim\.ema"):
        ExponentialAverage(model, 1.0)


def test_a_run_evaluates_saves_and_resumes_its_average(tmp_path) -> None:
    def run(folder, stop_at: int | None = None):
        engine = make_engine(folder, ema=0.9, checkpoint_every=5)
        if stop_at:
            engine.max_steps = stop_at
        seen = []
        engine.fit(stream(engine), lambda model: seen.append(model) or {})
        assert all(model is engine.average.module for model in seen)
        return engine

    straight = run(tmp_path / "straight")
    run(tmp_path / "resumed", stop_at=5)
    resumed = run(tmp_path / "resumed")
    assert resumed.progress.step == 12
    for one, other in zip(straight.model().parameters(), resumed.model().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert any(
        (a != b).any() for a, b in zip(straight.model().parameters(), straight.raw_task.model.parameters(), strict=True)
    )
    rows = [
        [row for row in read_rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row]
        for name in ("straight", "resumed")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 12
    plain = make_engine(tmp_path / "plain")
    plain.fit(stream(plain))
    with pytest.raises(ValueError, match=r"without optim\.ema"):
        make_engine(tmp_path / "plain", ema=0.9)


def test_mean_of_checkpoints(tmp_path) -> None:
    engine = make_engine(tmp_path, keep_every=4)
    engine.fit(stream(engine))
    paths = [tmp_path / "checkpoints" / f"step-{step}.ckpt" for step in (4, 8, 12)]
    states = [read_checkpoint(path)["task"] for path in paths]
    mean = average_checkpoints(paths)
    for key, value in mean["task"].items():
        torch.testing.assert_close(value, torch.stack([state[key] for state in states]).mean(0))
    assert mean["progress"]["step"] == 12 and mean["settings"] == {"kind": "test"}
    with pytest.raises(ValueError, match="none to average"):
        average_checkpoints([])
    other = read_checkpoint(paths[0])
    other["task"] = {"strange": torch.zeros(1)}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="another model"):
        average_checkpoints([*paths, tmp_path / "other.ckpt"])


def test_the_tool_writes_the_mean(tmp_path, forked_tools: ForkedTools) -> None:
    engine = make_engine(tmp_path, keep_every=6)
    engine.fit(stream(engine))
    paths = sorted((tmp_path / "checkpoints").glob("step-*.ckpt"))
    here = {"environment": os.environ, "cwd": tmp_path}
    done = forked_tools.run(TOOL, [*map(str, paths), "--output", str(tmp_path / "mean.ckpt")], **here)
    assert done.returncode == 0 and "mean of 2 checkpoints" in done.stdout, done.stderr
    expected = average_checkpoints(paths)["task"]
    for key, value in read_checkpoint(tmp_path / "mean.ckpt")["task"].items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    failed = forked_tools.run(TOOL, ["nowhere.ckpt", "--output", "x.ckpt"], **here)
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("error: nowhere.ckpt")
