"""Whether pretraining pays: what is paired with what, what is held out, and what an interval is worth."""

import json
import resource
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cells  # noqa: E402  (a script, of no package)
import transfer  # noqa: E402
import transfer_setup  # noqa: E402
from transfer_probes import probe_identity  # noqa: E402

from avssl.cli import parse  # noqa: E402
from avssl.config import FinetuneConfig, PretrainConfig  # noqa: E402


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> transfer_setup.Study:
    """Two sets by three, whose pretrained encoders are all of one architecture."""
    monkeypatch.setattr(
        transfer_setup, "architecture", lambda _: ["--audio.model", "mast_nano", "--audio.num_mels", "64"]
    )
    return transfer_setup.Study(
        rows=("demo-sources", "grid"),
        columns=("demo-sources", "fsdd", "grid"),
        roots={"grid": Path("g"), "fsdd": Path("f")},
        options={"demo-sources": {"shortcut": 0.5}},
        recipes={"recipe": "", "plain": "--objectives '[{name: infonce}]' --time_bins 1"},
        shares=(0.1, 1.0),
        draws=3,
        rates=(1e-4, 5e-4),
    )


def finished(study: transfer_setup.Study, runs: Path) -> Path:
    for cell in study.pretraining():
        cell.folder(runs).mkdir(parents=True)
        (cell.folder(runs) / "measured.json").write_text("{}")
    return runs


def test_what_a_run_is_survives_its_measuring(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row holds what its result says beside what the cell says: neither may hide the other."""
    for name in ("pretrain", "demo-sources:random:linear"):
        cell = next(
            c for c in (*study.pretraining(), *study.tuning(finished(study, tmp_path / name))) if name in c.name
        )
        result = {"metrics": {"a/top1": 0.5}, "start": "pretrained", "weights": {"value": 0.25}}

        def run(*_: Any, of: cells.Cell = cell, told: dict[str, Any] = result) -> Any:
            folder = of.folder(tmp_path / "runs") / "run"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(told))
            (folder / "metrics.jsonl").write_text("")
            return resource.getrusage(resource.RUSAGE_SELF)

        monkeypatch.setattr(cells, "usage", run)
        row = cells.measure(cell, tmp_path / "runs")
        assert cell.about.items() <= row.items() and row["weights"] == {"value": 0.25}


def value_of(arguments: tuple[str, ...], option: str) -> str:
    """The last value of an option, which is the one that counts."""
    return arguments[len(arguments) - 1 - arguments[::-1].index(option) + 1]


def test_all_runs_are_read_by_the_tools_and_are_as_many_as_the_plan_says(study, tmp_path: Path) -> None:
    runs = finished(study, tmp_path)
    pretrainings, tunings = study.pretraining(), study.tuning(runs)
    linear = [cell for cell in tunings if cell.about["head"] == "linear"]
    assert (len(pretrainings), len(linear), len(tunings) - len(linear)) == study.count()
    assert len({cell.name for cell in (*pretrainings, *tunings)}) == len(pretrainings) + len(tunings)
    plain = parse(PretrainConfig, list(next(c for c in pretrainings if c.about["recipe"] == "plain").arguments))
    assert plain.objectives == [{"name": "infonce"}]
    assert plain.data.options == {"shortcut": 0.5}
    tuned = parse(FinetuneConfig, list(next(c for c in tunings if c.about["from"] == "random").arguments))
    assert (tuned.checkpoint, tuned.audio.model, tuned.data.name) == ("none", "mast_nano", "demo-sources")


def test_both_starts_have_the_same_clips_steps_and_settings(study, tmp_path: Path) -> None:
    runs = study.tuning(finished(study, tmp_path))
    start = {"--checkpoint", "--audio.model", "--audio.num_mels"}
    found: dict[tuple[Any, ...], set[tuple[str, ...]]] = {}
    for cell in runs:
        pairs = zip(cell.arguments[::2], cell.arguments[1::2], strict=True)
        kept = tuple(part for pair in pairs if pair[0] not in start for part in pair)
        place = tuple(cell.about.get(key) for key in ("column", "head", "share", "draw", "lr"))
        found.setdefault(place, set()).add(kept)
    assert all(len(each) == 1 for each in found.values())
    assert {cell.about["partner"] for cell in runs if cell.about["from"] != "random"} == {"random"}


def test_a_pretraining_never_sees_the_test_of_its_draw(study, tmp_path: Path) -> None:
    """GRID's test clips are drawn: an encoder of draw 1 is fine-tuned and judged on draw 1."""
    runs = study.tuning(finished(study, tmp_path))
    for cell in runs:
        if cell.about["column"] != "grid" or cell.about["from"] == "random":
            continue
        checkpoint = value_of(cell.arguments, "--checkpoint")
        assert f"draw{cell.about['draw']}" in checkpoint
        if cell.about["from"] == "grid":
            (pretrained,) = [p for p in study.pretraining() if str(p.folder(tmp_path) / "run") == checkpoint]
            options = [json.loads(value_of(each.arguments, "--data.options")) for each in (cell, pretrained)]
            assert options[0] == options[1] and "test_clips" in options[0]


def test_speakers_of_the_test_are_in_no_training_and_differ_from_draw_to_draw(study, tmp_path: Path) -> None:
    runs = [cell for cell in study.tuning(finished(study, tmp_path)) if cell.about["column"] == "fsdd"]
    held = {cell.about["draw"]: value_of(cell.arguments, "--data.options") for cell in runs}
    assert len(set(held.values())) == 3
    assert all(json.loads(text)["held_out_speakers"] for text in held.values())
    assert all(float(value_of(cell.arguments, "--data.val_fraction")) > 0 for cell in runs)


def tuned(start: str, right: dict[str, bool], draw: int = 0, **more: Any) -> dict[str, Any]:
    about = {"kind": "tune", "column": "c", "from": start, "partner": None if start == "random" else "random"}
    about |= {"head": "full", "share": 0.1, "draw": draw, "label": "word", "weights": {"value": 0.5}}
    return about | {"metrics": {"word/top1": float(np.mean([*right.values()]))}, "right": right} | more


def test_clips_are_paired_by_name_and_draws_without_a_partner_are_left_out() -> None:
    clips = [f"c{k}" for k in range(40)]
    rows = []
    for draw in range(3):
        rows.append(tuned("random", {clip: k % 2 == 0 for k, clip in enumerate(clips)}, draw))
        rows.append(tuned("set", {clip: k % 2 == 0 or k < 20 for k, clip in reversed([*enumerate(clips)])}, draw))
    rows.append(tuned("set", dict.fromkeys(clips, False), draw=3))
    (row,) = transfer.compare(rows, {})
    assert row["draws"] == 3 and row["difference"] == pytest.approx(0.25)
    assert row["low"] > 0 and row["p_corrected"] == row["p"] < 0.01


def test_all_comparisons_are_corrected_together() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for share in (0.1, 0.3, 1.0):
        for start, rate in (("random", 0.5), ("set", 0.62)):
            rows += [
                tuned(start, {f"c{k}": bool(rng.random() < rate) for k in range(60)}, draw, share=share)
                for draw in range(3)
            ]
    found = transfer.compare(rows, {})
    smallest = min(row["p"] for row in found)
    assert min(row["p_corrected"] for row in found) == pytest.approx(min(1.0, 3 * smallest))


def test_groups_widen_an_interval_whose_clips_are_not_independent() -> None:
    def rows(right: float) -> list[dict[str, Any]]:
        clips = {f"c{k}": k // 10 < right for k in range(100)}  # whole groups of ten are right or wrong
        return [tuned("random", dict.fromkeys(clips, False), draw) for draw in range(3)] + [
            tuned("set", clips, draw) for draw in range(3)
        ]

    groups = {"c": {f"c{k}": f"g{k // 10}" for k in range(100)}}
    (alone,), (grouped,) = transfer.compare(rows(3), {}), transfer.compare(rows(3), groups)
    assert alone["difference"] == grouped["difference"] == pytest.approx(0.3)
    assert grouped["high"] - grouped["low"] > 2.5 * (alone["high"] - alone["low"])


def test_the_learning_rate_is_chosen_in_validation_for_each_start_alone() -> None:
    rows = [
        tuned(start, {"a": right}, lr=lr, weights={"value": value})
        for start, lr, value, right in (
            ("random", 1e-4, 0.2, True),
            ("random", 5e-4, 0.4, False),
            ("set", 1e-4, 0.3, True),
            ("set", 5e-4, 0.3, False),
        )
    ]
    chosen = {row["from"]: row["lr"] for row in transfer.best_of_rates(rows)}
    assert chosen == {"random": 5e-4, "set": 1e-4}


def test_identity_is_probed_among_clips_of_the_same_sources() -> None:
    rng = np.random.default_rng(0)
    names = [f"s{k % 5}" for k in range(60)] + [None, "rare"]
    told = np.array([int(str(name)[-1]) if name and name != "rare" else 0 for name in names])
    features = rng.standard_normal((62, 8))
    features[np.arange(62), told] += 4
    found = probe_identity(features, names)
    assert found["identities"] == 5 and found["chance"] == pytest.approx(0.2) and found["top1"] > 0.8
    assert probe_identity(rng.standard_normal((62, 8)), names)["top1"] < 0.45
    assert probe_identity(features, ["one"] * 62) == {}


def test_the_table_says_where_pretraining_hurts() -> None:
    clips = [f"c{k}" for k in range(100)]
    rows = []
    for draw in range(3):
        rows.append(tuned("random", {clip: k < 80 - draw for k, clip in enumerate(clips)}, draw))
        rows.append(tuned("set", {clip: k < 30 + draw for k, clip in enumerate(clips)}, draw))
    result = {
        "comparisons": transfer.compare(rows, {}),
        "rows": [{k: v for k, v in r.items() if k != "right"} for r in rows],
    }
    (line,) = [line for line in transfer.table(result).splitlines() if line.startswith("| c |")]
    assert "| worse |" in line and "| 10% | full | set |" in line


def test_a_set_without_its_folder_is_an_error(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split("transfer.py --rows demo --columns esc10"))
    with pytest.raises(SystemExit):
        transfer.main()
    assert "esc10 needs --esc10, its folder" in capsys.readouterr().err


def test_the_plan_adds_up_what_short_runs_took(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining: 10 s and 1 s a step; full fine-tuning: 5 s and half a second a step; linear 20 s."""
    calls = []

    def run(tool: str, arguments: list[str], log: Path) -> Any:
        calls.append(tool)
        steps = int(value_of(tuple(arguments), "--optim.max_steps")) if "--optim.max_steps" in arguments else 0
        linear = "linear" in arguments
        seconds = 10 + steps if tool == "pretrain" else 20 if linear else 5 + steps / 2
        return SimpleNamespace(ru_utime=seconds, ru_stime=0.0)

    monkeypatch.setattr(transfer, "usage", run)
    monkeypatch.setattr(transfer, "open_splits", lambda *_, **__: SimpleNamespace(train=range(320)))
    small = replace(study, rows=("demo-sources",), columns=("demo-sources",), recipes={"recipe": ""}, rates=(5e-4,))
    steps = 10 * int(parse(PretrainConfig, ["--config", "demo-sources"]).optim.epochs)
    tuned = 3 * 2 * 2  # draws, shares, starts
    seconds = 3 * (10 + steps) + tuned * 20 + tuned * (5 + small.steps / 2)
    told = list(transfer.plan(small, tmp_path, parallel=2))
    assert f"{seconds / 3600:.1f} hours of processor time, {seconds / 7200:.1f} hours with --parallel 2" in told[-1]
    assert told[-1].startswith("3 pretrainings, 12 linear and 12 full")
    before = len(calls)
    assert list(transfer.plan(small, tmp_path, parallel=2)) == told and len(calls) == before  # timed once


def test_a_full_head_may_have_shares_of_its_own(study, tmp_path: Path) -> None:
    few = replace(study, full_shares=(0.3,))
    found = {(c.about["head"], c.about["share"]) for c in few.tuning(finished(few, tmp_path))}
    assert found == {("linear", 0.1), ("linear", 1.0), ("full", 0.3)}
    pretrainings, linear, full = few.count()
    assert full == linear  # half the shares, twice the learning rates
    assert pretrainings == study.count()[0] and full == study.count()[2] // 2


def test_a_curve_over_clips_is_drawn_where_recipes_are_named_by_numbers(tmp_path: Path) -> None:
    same = {"column": "demo", "head": "linear", "random": [0.2, 0.3]}
    rows = [
        {**same, "share": share, "from": f"{clips}-demo", "pretrained": [share / 2, share / 2 + clips / 4000]}
        for share in (0.1, 1.0)
        for clips in (400, 100)
    ]
    transfer.plot({"benchmark": "transfer_clips", "comparisons": rows}, tmp_path / "clips.png")
    assert (tmp_path / "clips.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no recipe is named by a number"):
        transfer.plot({"benchmark": "transfer", "comparisons": [{**rows[0], "from": "demo"}]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
