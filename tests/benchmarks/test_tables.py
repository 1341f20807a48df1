"""Pages hold what their command makes of the committed results, and rows neither vanish nor flatter."""

import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import mast

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import recipe_tables  # noqa: E402  (a script, of no package)
import result_tables  # noqa: E402
import table  # noqa: E402

from avssl.evaluation.robustness import degradations  # noqa: E402

RECIPES = [path for folder in ("pretrain", "finetune") for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))]
MACHINE = {"processor": "P", "threads": 2, "cores": 2, "torch": "2.13", "date": "2026-01-02T03", "revision": "abc"}


def row(page: str, what: str) -> list[str]:
    """Cells of the one row about ``what``."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", ["speed.md", "results.md", "recipes.md", "pays.md"])
def test_committed_page_is_what_the_command_makes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, copy = (ROOT / "docs" / name).read_text(), tmp_path / name
    copy.write_text(re.sub(r"(?s)( begin -->\n).*?(\n<!-- \S+ end -->)", r"\1old\2", page))
    assert copy.read_text() != page
    monkeypatch.setattr(sys, "argv", ["table.py", str(copy)])
    table.main()
    assert copy.read_text() == page


def test_what_is_missed_says_why() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.table().splitlines()[2:]]
    assert not [cell[0] for cell in cells if cell[3] == "no"]


def test_every_goal_has_a_row_without_results(tmp_path: Path) -> None:
    lines = table.table(tmp_path).splitlines()[2:]
    assert len(lines) == len(table.GOALS)
    assert all("| not measured yet |" in line for line in lines)


def test_rows_tell_met_from_missed(tmp_path: Path) -> None:
    def write(name: str, **result: object) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": MACHINE, **result}))

    speedup = {"speedup": 5.0, "speedup_range": [4.5, 5.5], "mfu": [None, None]}
    write(
        "mast_vs_ast_mast_base_cpu_fp32",
        train=speedup,
        inference=speedup | {"speedup": 4.99},
        train_peak_mib={"ours": 300.0, "peer": 1000.0},
    )
    rows = [{"frames": 256, "excess": 1.31}]
    write("length_mast_base_cpu_fp32_inference", settings={"keep_memory": True}, worst=1.31, rows=rows)
    scaling = {"1": {"share_of_linear": 1.0}, "2": {"share_of_linear": 0.95}, "4": {"share_of_linear": 0.5}}
    ratio = {"ratio": 0.96, "range": [0.9, 1.0]}
    ratios = {name: ratio for name in ("loader_vs_bare", "cached_loader_vs_bare", "cache_vs_originals")}
    peers = ("pyav", "decord", "torchcodec")
    write(
        "loading", scaling=scaling, vs_peers=dict.fromkeys(peers, ratio), versions=dict.fromkeys(peers, "1"), **ratios
    )
    for data in ("grid", "esc10"):
        settings = {"media": data, "workers": 1}
        write(
            f"inference_folder_{data}",
            settings=settings,
            result={"share": 0.9, "speedup_range": [0.8, 1.0], "modalities": ["audio"]},
        )
    runs = [
        {"clips_per_second": rate, "batch": 8, "mfu": 0.4, "peak_mib": 1024.0, "busy": busy, "data_wait": 0.03}
        for rate, busy in ((10.0, 0.99), (20.0, 0.94))
    ]
    write("pretraining_cuda", runs=runs)
    page = table.table(tmp_path)
    on = "P, 2 threads; torch 2.13; 2026-01-02, abc"
    step = row(page, f"{table.STEP}, float32")
    assert step[1:5] == ["at least 5x", "5x (4.5x to 5.5x)", "yes", on]
    assert row(page, f"{table.RUN}, float32")[2:4] == ["4.99x (4.5x to 5.5x)", f"no: {table.ARITHMETIC}"]
    assert row(page, "Peak memory of training against AST")[1:4] == ["at most 33.3 %", "30 %; 300 of 1000 MiB", "yes"]
    missed = row(page, "MAST-B, time beyond what multiply-accumulates say, inference")
    assert missed[3].startswith("no: one clip") and missed[4].startswith("P, 2 threads, freed memory kept; torch")
    assert row(page, "Loader against bare decoding")[2:4] == ["96 % (90 % to 100 %)", "yes"]
    assert row(page, "Cache against originals of 720p")[3] == "no"
    found = row(page, "Loader of shards, share of linear scaling")
    assert found[2] == "50 %; workers 1: 100 %, 2: 95 %, 4: 50 %; 2 cores" and found[3].startswith("no: ")
    assert page.count("| Embedding of a folder against bare decoding |") == 2
    assert row(page, "Pretraining on a GPU: share of the time that it works")[2:4] == [
        "94 %; 20 clips/s, batch 8, 1 GiB, MFU 40 %",
        f"no: run operator by operator: {table.LAUNCHES}",  # the fastest setting, not the one that looks best
    ]
    assert row(page, "Pretraining on a GPU: share of the time that it waits for data")[3] == "yes"


def test_bad_results_and_pages_are_named(tmp_path: Path) -> None:
    (tmp_path / "frontend_cpu.json").write_text(json.dumps({"machine": MACHINE}))
    with pytest.raises(ValueError, match=r"frontend_cpu\.json: has no field 'speedup'"):
        table.table(tmp_path)
    begin, end = "<!-- speed: begin -->", "<!-- speed: end -->"
    for page in ("", begin, f"{end}\n{begin}", f"{begin}\n{begin}\n{end}"):
        with pytest.raises(ValueError, match="needs the lines"):
            table.filled(page, tmp_path)
    for page in (f"{begin}{end}{begin}{end}", "<!-- sped: begin --><!-- sped: end -->"):
        with pytest.raises(ValueError, match="no table, or one too many, has the name 'spe"):
            table.filled(page, tmp_path)


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    """A folder with the result of two seeds of a loss, one of another, and random weights."""

    def row(loss: str, seed: int, score: float, **more: object) -> dict[str, object]:
        metrics = {"probe/event/top1": score, "event/NMI": score, "event/silhouette": -0.1}
        if loss != "random":
            metrics |= {"audio_to_video/R@1": score / 2, "video_to_audio/R@1": score / 4, "chance/R@1": 0.01}
            metrics |= {f"few_label/event/{share}/top1": score for share in ("1%", "5%", "10%", "50%", "100%")}
            metrics |= {f"few_label/event/{share}/random_top1": 0.1 for share in ("1%", "5%", "10%", "50%", "100%")}
            for kind in ("", "random/", "other_sound/", "centre/", "best/"):
                metrics |= {f"localization/{kind}{key}": score for key in ("cIoU@0.5", "AUC", "pointing")}
            metrics |= {f"robustness/{name}/event/top1": score / 2 for name in result_tables.CONDITIONS}
            more["passes"] = 16
            more["objectives"] = [{"name": "infonce"}, {"name": "vicreg", "weight": 0.5, "projection": "infonce"}]
        full = {"event/top1": score + 0.1}
        return {"data": "demo", "loss": loss, "seed": seed, "metrics": metrics, "full": full, **more}

    rows = [row("recipe", 0, 0.4, revision="abc"), row("recipe", 1, 0.6, revision="def")]
    rows += [row("infonce", 0, 0.3, revision="abc"), row("infonce", 1, 0.5, revision="old")]
    rows += [row("random", 0, 0.2, revision="abc")]
    result = {"benchmark": "pretraining", "machine": MACHINE}
    (tmp_path / "pretraining.json").write_text(json.dumps(result | {"rows": rows}))
    return tmp_path


def cells_of(lines: str) -> list[list[str]]:
    table = [line for line in lines.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_pretraining_is_told_over_seeds_beside_random_weights(pretraining: Path) -> None:
    page = result_tables.TABLES["pretraining"](pretraining)
    rows = cells_of(page)
    assert [row[1] for row in rows] == ["random weights", "recipe", "infonce"]
    loss = "infonce + 0.5 vicreg (projection: infonce)"
    numbers = ["50.0 % +- 14.1", "60.0 % +- 14.1", "25.0 % +- 7.1", "12.5 % +- 3.5", "0.50 +- 0.14", "-0.10 +- 0.00"]
    assert rows[1] == ["demo", "recipe", loss, "16", *numbers, "2", "abc, def"]  # every revision that a row has
    assert rows[0][2:8] == ["", "", "20.0 %", "30.0 %", "chance", "chance"]
    assert rows[2][4] == "40.0 % +- 14.1" and rows[2][-2:] == ["2", "abc, old"]


def test_heat_maps_stand_beside_what_they_must_beat(pretraining: Path) -> None:
    page = result_tables.TABLES["localization"](pretraining)
    header = ["", "recipe", "infonce", "recipe, another clip's sound", "random weights", "the centre"]
    assert page.splitlines()[0] == f"| {' | '.join([*header, 'the best possible'])} |"
    assert cells_of(page)[2] == ["pointing", "50.0 % +- 14.1", "40.0 % +- 14.1", *["50.0 % +- 14.1"] * 4]


def test_transfer_has_both_ways_to_start_beside_random_weights(tmp_path: Path) -> None:
    assert result_tables.TABLES["transfer"](tmp_path) == result_tables.NOTHING
    row = {"column": "fsdd", "head": "full", "share": 0.1, "from": "demo-sources", "random": [0.2], "draws": 1}
    row |= {"difference": 0.1, "low": -0.02, "high": 0.2}
    for name, value in (("transfer", 0.3), ("transfer_kept", 0.25)):
        result = {"machine": MACHINE, "comparisons": [row | {"pretrained": [value]}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (found,) = cells_of(result_tables.TABLES["transfer"](tmp_path))
    assert found[:6] == ["fsdd", "10%", "demo-sources", "20.0 %", "25.0 %", "30.0 %"]
    assert found[6:8] == ["+10.0 (-2.0 to +20.0)", "1"]


def test_a_shortcut_has_contrast_alone_beside_the_recipe(tmp_path: Path) -> None:
    assert result_tables.TABLES["shortcut"](tmp_path) == result_tables.NOTHING
    row = {"column": "voices", "head": "linear", "random": [0.2, 0.4], "draws": 2, "high": 0.2}
    apart = [{"share": 0.1, "low": -0.02, "p_corrected": 0.2}, {"share": 0.3, "low": 0.01, "p_corrected": 0.2}]
    apart.append({"share": 1.0, "low": 0.01, "p_corrected": 0.01, "draws": 3})
    rows = [row | more | {"from": "voices", "pretrained": [0.5, 0.3]} for more in apart]
    rows += [row | more | {"from": "plain-voices", "pretrained": [0.1, 0.1]} for more in apart]
    rows.append(row | apart[0] | {"head": "full", "from": "voices", "pretrained": [0.1, 0.1]})  # alone: not yet run
    (tmp_path / "transfer_voices.json").write_text(json.dumps({"machine": MACHINE, "comparisons": rows}))
    (found,) = cells_of(result_tables.TABLES["shortcut"](tmp_path))
    scores = "30.0 / 10.0 / 40.0"
    assert found == ["voices", "voices", "linear", "", "", scores, f"{scores} +", f"{scores} ++", "2 to 3", "abc"]


def test_losses_are_those_of_validation_and_the_default_is_marked(tmp_path: Path) -> None:
    recipe = yaml.safe_load((ROOT / "configs/pretrain/demo.yaml").read_text())["objectives"]
    default = [term for term in recipe if "modality" not in term]
    terms = {"other": [{"name": "infonce", "weight": 0.25}], "chosen": default}
    rows = [
        {"data": "demo", "objective": name, "probe": probe, "audio_to_video": 0.2, "video_to_audio": 0.1}
        for name, probe in (("chosen", 0.5), ("other", 0.6), ("other", 0.8))
    ]
    for name in ("objectives_demo", "objectives_demo_validation"):
        kept = rows if name.endswith("validation") else rows[:1] * 9
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": MACHINE, "objectives": terms, "rows": kept}))
    found = cells_of(result_tables.TABLES["losses"](tmp_path))
    assert [row[2:] for row in found] == [
        ["70.0 % +- 14.1", "20.0 % +- 0.0", "10.0 % +- 0.0", "2", "abc"],
        ["50.0 %", "20.0 %", "10.0 %", "1", "abc"],
    ]
    assert found[0][1] == "0.25 infonce" and found[1][1].endswith(", the default")


def test_few_labels_and_damages_have_a_column_each(pretraining: Path) -> None:
    few = cells_of(result_tables.TABLES["few-labels"](pretraining))
    assert few == [["demo event", "linear probe", *["10.0 % +- 0.0 / 50.0 % +- 14.1"] * 5, "abc, def"]]
    damaged = cells_of(result_tables.TABLES["robustness"](pretraining))
    assert damaged[0] == ["demo event", "recipe", "50.0 % +- 14.1", *["25.0 % +- 7.1"] * len(result_tables.CONDITIONS)]


def test_conditions_of_the_page_are_those_of_the_evaluation() -> None:
    assert set(result_tables.CONDITIONS) <= {each.name for each in degradations(16000)}


def test_without_results_tables_say_so(tmp_path: Path) -> None:
    for name in ("mast-vs-ast", "recipes", "pretraining", "few-labels", "losses", "localization", "robustness"):
        assert result_tables.TABLES[name](tmp_path) == "Not measured yet."


def leaves(values: dict, prefix: str = "") -> set[str]:
    out = set()
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in ("options", "parameters", "mixup")
        out |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}"}
    return out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_line_of_a_recipe_says_whose_it_is(path: Path) -> None:
    found = list(recipe_tables.settings_of(path))
    told = {name for name in leaves(yaml.safe_load(path.read_text())) if not recipe_tables.OF_THE_RUN.fullmatch(name)}
    assert {setting.name for setting in found} == told
    assert all(setting.origin[0] for setting in found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: 1.0e-3", "optim.lr: 1.0e-3 does not say whose it is"),
        ("lr: 1.0e-3 # chosen", "optim.lr: 1.0e-3 says 'chosen'"),
        ("lr: 1.0e-3 # published (ATS run.sh)", r"optim.lr: 1.0e-3 says 'published \(ATS run.sh\)'"),
    ],
)
def test_a_line_of_nobody_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"data:\n  name: x\noptim:\n  epochs: 3 # ours: AST has 5\n  {line}\n")
    epochs, lr = recipe_tables.settings_of(tmp_path / "r.yaml")
    assert epochs.origin == ("ours", "AST has 5")
    shown = recipe_tables.Setting("x", "1", "published (CAV-MAE, MViTv2 config: both)").origin
    assert shown == ("CAV-MAE, MViTv2", "config: both")
    with pytest.raises(ValueError, match=message):
        lr.origin  # noqa: B018


def test_mast_base_has_the_stages_and_the_stochastic_depth_of_mvitv2_b() -> None:
    """SlowFast's configs/Kinetics/MVITv2_B_32x3.yaml: 24 blocks, DIM_MUL at 2, 5 and 21, DROPPATH_RATE 0.3."""
    recipes = [yaml.safe_load(path.read_text()) for path in recipe_tables.CONFIGS.glob("finetune/*.yaml")]
    rates = [r["audio"]["options"]["drop_path"] for r in recipes if r.get("audio", {}).get("model") == "mast_base"]
    assert len(rates) >= 4 and set(rates) == {0.3}
    with torch.device("meta"):
        model = mast.create_model("mast_base")
    assert list(itertools.accumulate(model.config["depths"])) == [2, 5, 21, 24]


def test_results_are_read_in_two_minutes() -> None:
    assert len((ROOT / "docs" / "results.md").read_text().splitlines()) < 120
