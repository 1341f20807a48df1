"""Runs side by side: what is shown, what is tested how, and what is refused."""

import copy
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from avssl.commands import main
from avssl.commands.compare import compare, differing_options, read_runs
from avssl.evaluation.classification import multi_head_metrics
from avssl.evaluation.result import write_predictions

RESULT = {
    "kind": "finetune-full",
    "clip_protocol": "1 clip of 1 s",
    "manifest": "abc",
    "coverage": {"evaluated": {"evaluated": 80}},
    "config": {"data": {"name": "esc10", "options": {"fold": 1}}, "optim": {"lr": 0.1}, "output": None, "seed": 0},
}
IDS = [f"clip {k}" for k in range(80)]


def make_run(folder: Path, noise: float, *, predictions: bool = True, **changes) -> Path:
    """A run of four classes whose scores are the truth and ``noise``."""
    rng = np.random.default_rng(int(noise * 10))
    truth = np.arange(80) % 4
    scores = (truth[:, None] == np.arange(4)) + rng.normal(0, noise, (80, 4))
    result = copy.deepcopy(RESULT) | {"metrics": multi_head_metrics({"x": scores}, {"x": truth})}
    result["config"]["optim"]["lr"] = noise
    result["config"]["output"] = str(folder)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result | changes))
    if predictions:
        write_predictions(folder / "predictions.parquet", IDS, {"x": scores}, {"x": truth})
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [make_run(tmp_path / "good", 0.3), make_run(tmp_path / "bad", 1.5), make_run(tmp_path / "worse", 1.6)]


def markdown_rows(text: str, title: str) -> list[dict[str, str]]:
    lines = text.split(f"### {title}\n\n")[1].split("\n\n")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_table_has_metrics_and_what_differs(runs) -> None:
    rows = markdown_rows(compare(runs, format="markdown"), "Metrics")
    assert [row["run"] for row in rows] == ["good", "bad", "worse"]
    assert [row["optim.lr"] for row in rows] == ["0.3", "1.5", "1.6"]
    assert not {"seed", "output", "data.name", "x/count", "x/top1_low"} & rows[0].keys()
    for row, path in zip(rows, runs, strict=True):
        metrics = json.loads((path / "result.json").read_text())["metrics"]
        assert f"{100 * metrics['x/top1']:.1f} %" in row["x/top1"]
        assert f"({100 * metrics['x/top1_low']:.1f} to" in row["x/top1"]
    assert [row["x/mAP"].startswith("**") for row in rows] == [True, False, False]


def test_paired_differences_are_those_of_the_tests(runs) -> None:
    text = compare(runs, format="markdown")
    rows = {(row["runs"], row["metric"]): row for row in markdown_rows(text, "Differences")}
    found = read_runs(runs[:2])
    right = [run.predictions.predicted["x"] == run.predictions.truth["x"] for run in found]
    better, worse = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    row = rows["good \N{MINUS SIGN} bad", "x/top1"]
    assert float(row["p"]) == pytest.approx(binomtest(better, better + worse).pvalue, rel=0.01)
    assert row["significant"] == "**yes**" and "McNemar" in row["test"]
    assert float(row["p, Holm"]) >= float(row["p"])
    difference = 100 * (right[0].mean() - right[1].mean())
    assert row["difference"] == f"{difference:+.1f} points"
    assert rows["bad \N{MINUS SIGN} worse", "x/top1"]["significant"] == "no"
    assert "paired bootstrap of 80 clips" in rows["good \N{MINUS SIGN} bad", "x/mAP"]["test"]


def test_without_predictions_intervals_are_compared_and_it_is_said(tmp_path) -> None:
    paths = [make_run(tmp_path / "good", 0.3), make_run(tmp_path / "bad", 1.5, predictions=False)]
    text = compare(paths, format="markdown")
    rows = {row["metric"]: row for row in markdown_rows(text, "Differences")}
    assert rows["x/top1"]["test"] == "unpaired intervals" and rows["x/top1"]["significant"] == "**yes**"
    assert "for want of predictions.parquet: bad" in text


def test_runs_are_paired_on_the_clips_that_both_have(tmp_path) -> None:
    paths = [make_run(tmp_path / "good", 0.3), make_run(tmp_path / "bad", 1.5)]
    truth = np.arange(80) % 4
    scores = np.eye(4)[truth] + np.random.default_rng(0).normal(0, 1.5, (80, 4))
    order = np.random.default_rng(1).permutation(80)[:60]
    ids = [IDS[k] for k in order]
    write_predictions(paths[1] / "predictions.parquet", ids, {"x": scores[order]}, {"x": truth[order]})
    text = compare(paths, format="markdown", metrics=["x/top1"])
    assert "paired on the 60 of 80 clips" in text and "of 60 clips" in text
    write_predictions(paths[1] / "predictions.parquet", ids, {"x": scores[order]}, {"x": (truth[order] + 1) % 4})
    with pytest.raises(ValueError, match="other labels of 'x'"):
        compare(paths)


def test_action_is_verb_and_noun_of_clips_that_have_both(tmp_path) -> None:
    rng = np.random.default_rng(0)
    truth = {"verb": np.arange(40) % 3, "noun": np.arange(40) % 5}
    truth["noun"][:4] = -1
    right = {}
    for name in ("one", "two"):
        scores = {
            head: rng.normal(0, 1, (40, k)) + 2 * np.eye(k)[truth[head]] for head, k in (("verb", 3), ("noun", 5))
        }
        folder = make_run(tmp_path / name, 0.3 if name == "one" else 0.4)
        metrics = {"metrics": multi_head_metrics(scores, truth)}
        result = json.loads((folder / "result.json").read_text()) | metrics
        (folder / "result.json").write_text(json.dumps(result))
        write_predictions(folder / "predictions.parquet", IDS[:40], scores, truth)
        right[name] = np.all([scores[head].argmax(1) == truth[head] for head in truth], axis=0)[4:]
    rows = markdown_rows(compare([tmp_path / "one", tmp_path / "two"], format="markdown"), "Differences")
    (row,) = [row for row in rows if row["metric"] == "action/top1"]
    better, worse = int((right["one"] & ~right["two"]).sum()), int((right["two"] & ~right["one"]).sum())
    assert f"of 36 clips {better} right here only, {worse} there only" in row["test"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"manifest": "xyz"}, "data .good: abc, other: xyz"),
        ({"split": "val"}, "split .good: test, other: val"),
        (
            {"held_out": {"test": {"clips": 9, "of": 40, "seed": 0}}},
            "split .good: test, other: test held out: 9 of 40 clips, seed 0",
        ),
        ({"clip_protocol": "5 clips of 1 s"}, "clip protocol .good: 1 clip of 1 s, other: 5 clips of 1 s"),
    ],
)
def test_other_conditions_are_refused_unless_forced(changes, told: str, tmp_path) -> None:
    paths = [make_run(tmp_path / "good", 0.3), make_run(tmp_path / "other", 1.5, **changes)]
    with pytest.raises(ValueError, match=told):
        compare(paths)
    assert "Compared by force" in compare(paths, force=True)


def test_what_cannot_be_compared(runs, tmp_path) -> None:
    with pytest.raises(ValueError, match="at least two"):
        compare(runs[:1])
    with pytest.raises(ValueError, match="given twice"):
        compare([runs[0], runs[0] / "result.json"])
    with pytest.raises(FileNotFoundError, match=r"no result\.json"):
        compare([runs[0], tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="not in all runs: x/top7"):
        compare(runs, metrics=["x/top7"])
    other = make_run(tmp_path / "retrieval", 0.2, metrics={"audio_to_video/R@1": 0.5})
    with pytest.raises(ValueError, match="share no metric"):
        compare([runs[0], other])
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no metrics"):
        compare([runs[0], tmp_path / "list"])


def test_lower_ranks_are_better_and_same_names_are_told_apart(tmp_path) -> None:
    paths = [
        make_run(tmp_path / part / "run", noise, metrics={"a/median_rank": rank, "a/R@1": share})
        for part, noise, rank, share in (("1", 0.3, 4.0, 0.25), ("2", 0.4, 7.0, 0.25))
    ]
    rows = markdown_rows(compare(paths, format="markdown"), "Metrics")
    assert [row["run"] for row in rows] == [str(path) for path in paths]
    assert [row["a/median_rank"] for row in rows] == ["**4**", "7"]
    assert [row["a/R@1"] for row in rows] == ["**25.0 %**"] * 2


def test_options_of_which_one_run_has_none(runs) -> None:
    found = read_runs(runs[:2])
    found[0].result["config"]["optim"]["ema"] = None
    assert differing_options(found)["optim.ema"] == ["null", "\N{EN DASH}"]


def test_a_table_too_wide_for_text_has_runs_as_columns_and_no_deviations(tmp_path) -> None:
    metrics = {f"few_label/x/{k}%/top1{end}": 0.5 for k in range(1, 9) for end in ("", "_std")}
    paths = [make_run(tmp_path / name, noise, metrics=metrics) for name, noise in (("one", 0.3), ("two", 0.4))]
    lines = compare(paths).splitlines()
    assert lines[1].split() == ["run", "one", "two"] and "_std" not in "".join(lines)
    assert re.search(r"<th>run</th>\s*<th>one</th>\s*<th>two</th>", compare(paths, format="html"))
    assert [line.split()[0] for line in lines[4:12]] == [f"few_label/x/{k}%/top1" for k in range(1, 9)]


def test_markup_in_names_is_text_on_the_page(tmp_path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    truth = np.arange(40) % 2
    scores = np.eye(2)[truth]
    metrics = multi_head_metrics({evil: scores}, {evil: truth})
    runs = []
    for name in (f"a{evil}", f"b{evil}"):
        config = {"data": {"name": f"{name}.csv"}, evil: name}
        folder = make_run(tmp_path / name, 0.3, predictions=False, metrics=metrics, config=config, manifest=name)
        runs.append(folder)
    page = compare(runs, format="html", force=True)
    assert "<img" not in page
    for text in (f"a{evil}", f"b{evil}.csv", f"{evil}/top1", f"differs (a{evil}"):
        assert html.escape(text) in page, text


def test_text_and_html(runs, tmp_path, capsys) -> None:
    plain, bold = compare(runs), compare(runs, bold=True)
    assert re.search(r"good .*100\.0 %.* \*", plain) and "\033[1m" in bold and "\033" not in plain
    page = tmp_path / "out" / "page.html"
    assert (
        main(["compare", *map(str, runs), "--format", "html", "--output", str(page)]) == 0
        and capsys.readouterr().out == ""
    )
    text = page.read_text()
    assert "<b>yes</b>" in text and "<td>good</td>" in text and "http" not in text
    assert main(["compare", str(runs[0]), "nowhere"]) == 1
    assert capsys.readouterr().err == "error: runs: nowhere has no result.json; is the run finished?\n"
