"""MAST against AST: how learning rates are searched, what equal time means, and what the table says of the rows."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence  # noqa: E402  (a script, of no package)
import evidence_plan  # noqa: E402
import evidence_setup  # noqa: E402
import few_labels  # noqa: E402
import pretraining  # noqa: E402
from cells import Cell  # noqa: E402
from result_tables import evidence_table  # noqa: E402

from avssl.cli import read_settings  # noqa: E402
from avssl.config import PretrainConfig  # noqa: E402


@pytest.fixture
def plan() -> evidence_plan.Plan:
    return evidence_plan.Plan(
        precision="32-true",
        steps={"fsdd": {"mast": 0.1, "ast": 0.26}},
        speedup={"fsdd": {"speedup": 2.6}},
        decode={"fsdd": 0.001},
        clips={"fsdd": (480, 500)},
        epochs={"fsdd": 10},
        minutes={"fsdd": 9.0},
    )


@pytest.mark.parametrize(
    ("peak", "tried"),
    [
        (5e-4, [2.5e-4, 5e-4, 1e-3]),
        (1e-4, [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3]),
        (1e-5, [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3]),  # there is none below
        (2e-3, [2.5e-4, 5e-4, 1e-3, 2e-3]),
    ],
)
def test_rates_are_tried_until_the_best_is_no_edge(peak: float, tried: list[float]) -> None:
    scores: dict[float, float] = {}
    while rates := evidence_plan.untried(scores):
        scores |= {lr: -abs(evidence_plan.LEARNING_RATES.index(lr) - evidence_plan.LEARNING_RATES.index(peak))
                   for lr in rates}  # fmt: skip
    assert sorted(scores) == tried
    assert evidence_plan.best_rate(scores) == peak


def test_at_equal_time_mast_has_more_passes_and_all_else_is_alike(plan: evidence_plan.Plan) -> None:
    rates = {("fsdd", "mast"): 5e-4, ("fsdd", "ast"): 2.5e-4}
    cells = evidence.test_cells({"fsdd": Path("data")}, plan, rates)
    trained = [cell for cell in cells if cell.about["kind"] == "trained"]
    assert len(trained) == 3 * len(evidence_setup.SPEAKERS)
    options = {cell.name: dict(zip(cell.arguments[::2], cell.arguments[1::2], strict=True)) for cell in trained}
    passes, longer = options["fsdd:mast-passes:theo"], options["fsdd:mast-time:theo"]
    assert {key for key in passes if passes[key] != longer[key]} == {"--optim.epochs"}
    assert (passes["--optim.epochs"], longer["--optim.epochs"]) == ("10", "26")
    ast = options["fsdd:ast-passes:theo"]
    assert {key for key in passes if passes[key] != ast[key]} == {"--audio.model", "--audio.options", "--optim.lr"}
    assert "fsdd:ast-time:theo" not in options


def test_rates_are_chosen_by_validation_alone(
    plan: evidence_plan.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {2.5e-4: 0.3, 5e-4: 0.5, 1e-3: 0.5}

    def row(cell: Cell, runs: Path) -> dict[str, Any]:
        lr = cell.about["lr"]
        score = {"val/digit/top1": scores[lr], "val/digit/mAP": lr}
        return cell.about | {"cell": cell.name, "validation": score, "metrics": {"digit/top1": 1 - scores[lr]}}

    monkeypatch.setattr(evidence, "measured", row)
    monkeypatch.setattr(evidence_plan, "LEARNING_RATES", tuple(scores))
    kept: list[dict[str, Any]] = []
    rates, failed = evidence.tune({"fsdd": Path("data")}, plan, tmp_path, lambda cells: len(cells), kept.append)
    assert rates == {("fsdd", "mast"): 1e-3, ("fsdd", "ast"): 1e-3}  # of equal top-1 the higher mAP
    assert not failed and len(kept) == 6


def test_a_rate_that_fails_ends_the_search(
    plan: evidence_plan.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "measured", lambda cell, runs: None)
    run: Callable[[list[Cell]], int] = len
    assert evidence.tune({"fsdd": Path("data")}, plan, tmp_path, run, lambda row: None) == ({}, 6)


def test_a_plan_of_another_precision_is_refused(plan: evidence_plan.Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(vars(plan)))
    with pytest.raises(ValueError, match=r"plan\.json is of --precision 32-true"):
        evidence_plan.make_plan({}, 1, "bf16-mixed", file)


def test_table_pairs_runs_of_the_same_split(plan: evidence_plan.Plan) -> None:
    def row(model: str, budget: str, split: str, top1: float) -> dict[str, Any]:
        passes = 26 if budget == "time" else 10
        about = {"data": "fsdd", "model": model, "kind": "trained", "budget": budget, "split": split, "lr": 5e-4}
        return about | {"passes": passes, "metrics": {"digit/top1": top1}, "clustering": {"digit": {"NMI": 0.5}}}

    rows = [row("ast", "passes", "a", 0.2), row("ast", "passes", "b", 0.4)]
    rows += [row("mast", "passes", "a", 0.5), row("mast", "passes", "b", 0.3), row("mast", "time", "b", 0.7)]
    rows += [{"data": "fsdd", "model": "ast", "kind": "random", "split": "a", "metrics": {"digit/top1": 0.1}}]
    rows += [{"data": "fsdd", "model": "ast", "kind": "tune", "split": "a", "metrics": {"digit/top1": 0.9}}]
    result = {"plan": vars(plan), "settings": {"batch": {"fsdd": 16}}, "rows": rows, "machine": {"revision": "abc"}}
    lines = evidence_table(result).splitlines()
    (cells,) = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[:4] == ["fsdd", "30.0 % +- 14.1", "40.0 % +- 14.1", "10.0 points +- 28.3 (1 of 2)"]
    assert cells[4:6] == ["70.0 %", "30.0 points (1 of 1)"]
    assert cells[6:8] == ["10 / 10 / 26", "1.3 / 0.5 / 1.3"]  # 300 steps of 0.26 s, and so on
    assert cells[9:] == ["10.0 %", "0.0005 / 0.0005 / 0.0005", "abc"]


@pytest.mark.parametrize("recipe", ["demo", "grid"])
def test_contrast_alone_has_one_view_and_sound_as_it_is(recipe: str) -> None:
    file = ["--config", str(ROOT / f"configs/pretrain/{recipe}.yaml"), "--data", recipe]
    whole = read_settings(PretrainConfig, file)
    pair = [term for term in whole.objectives if "modality" not in term]
    assert len(pair) == 2 and len(whole.objectives) == 3 and whole.augment.spec_warp and whole.augment.mix
    for loss, terms in {"recipe": whole.objectives, "contrast alone": pair, "infonce alone": pair[:1]}.items():
        config = read_settings(PretrainConfig, [*file, *pretraining.LOSSES[loss]])
        assert config.objectives == terms
        assert config.optim == whole.optim and config.video == whole.video
        if loss != "recipe":
            bare = read_settings(PretrainConfig, ["--config", "none", "--data", recipe])
            assert config.augment == bare.augment
            if loss == "contrast alone":
                over = read_settings(PretrainConfig, [*file, "--config", "retrieval"])
                assert (over.objectives, over.augment) == (config.objectives, config.augment)


def test_few_labels_write_and_print_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(few_labels, "architecture", lambda _: ["--audio.model", "mast_nano"])

    def measure_all(cells: list[Cell], runs: Path, parallel: int, keep: Callable[[Any], None], what: str) -> int:
        for cell in cells:
            start = "pretrained" if "pretrained" in cell.name else "random"
            keep({"cell": cell.name, **cell.about, "start": start, "metrics": {"event/top1": 0.25}, "arguments": []})
        return 0

    monkeypatch.setattr(few_labels, "measure_all", measure_all)
    options = ["--demo-checkpoint", "run", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path), "--draws", "2"]
    monkeypatch.setattr(sys, "argv", ["few_labels.py", *options])
    assert few_labels.main() == 0
    assert "| demo event | all weights | 25.0 % +- 0.0 / 25.0 % +- 0.0 |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "few_labels.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * len(few_labels.SHARES) and not any("arguments" in row for row in rows)
