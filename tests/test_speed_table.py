"""The page on speed holds what its command makes of the committed results, and rows neither vanish nor flatter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import table  # noqa: E402  (a script, of no package)

MACHINE = {"processor": "P", "threads": 2, "cores": 2, "torch": "2.13", "date": "2026-01-02T03", "revision": "abc"}


def row(page: str, what: str) -> list[str]:
    """Cells of the one row about ``what``."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_committed_page_is_what_the_command_makes(tmp_path: Path) -> None:
    page, copy = ROOT / "docs" / "speed.md", tmp_path / "speed.md"
    copy.write_text(page.read_text().split(table.BEGIN)[0] + table.BEGIN + "\nold\n" + table.END)
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "table.py"), str(copy)], check=True)
    assert copy.read_text() == page.read_text().split(table.END)[0] + table.END


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
    for page in ("", table.BEGIN, f"{table.END}\n{table.BEGIN}"):
        with pytest.raises(ValueError, match="needs the lines"):
            table.filled(page, tmp_path)
