"""Killed at any operation on a file, nothing half-written counts as whole, and the same command finishes the job."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import media_factory
import pytest
from kill_points import kills
from small_runs import small_pretraining

from avssl.checkpoint import verify
from avssl.commands.prepare import prepare
from avssl.commands.pretrain import pretrain
from avssl.config import PrepareOptions
from avssl.data.manifest import Manifest
from avssl.demo import build_demo, demo_rows, ensure_demo
from avssl.evaluation.plots import drawn, new_figure, save
from avssl.evaluation.report import write_report
from avssl.evaluation.result import write_result
from avssl.tracking import read_rows

logger = logging.getLogger(__name__)


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files that are not hidden."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def hidden(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


@pytest.fixture
def every(long: bool) -> int:
    """Of the operations at which work is killed, one of so many is tried."""
    return 1 if long else 4


def test_a_report_is_whole_or_not_there(tmp_path: Path, every: int) -> None:
    output = tmp_path / "out"

    def write(folder: Path) -> None:
        write_result(folder / "result.json", {"metrics": {"a": 0.5}})
        picture = folder / "pictures" / "a.png"
        pictures = drawn(picture, "A", lambda: save(new_figure(1, 1), picture))
        write_report(folder, title="Test", summary={"a": "50 %"}, pictures=pictures)

    write(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    assert expected.keys() == {"result.json", "report.html", "pictures/a.png"}
    count = 0
    for where in kills(lambda: write(output), tmp_path / "out", every):
        there = contents(output) if output.exists() else {}
        assert there.items() <= expected.items(), where
        count += 1
    logger.info("%d kills", count)
    assert count >= 12 // every and contents(output) == expected


@pytest.mark.parametrize("anew", [False, True])
def test_a_demo_set_is_whole_or_not_there(tmp_path: Path, anew: bool, every: int) -> None:
    sizes = {"pretrain": 2, "train_per_class": 0, "test_per_class": 0, "workers": 0}
    expected = contents(build_demo(tmp_path / "whole", **sizes))
    cache = tmp_path / "cache"
    root = cache / "demo"
    make = build_demo if anew else ensure_demo
    count = 0
    for where in kills(lambda: make(root, **sizes), cache, every):
        if root.exists():
            assert demo_rows(root) and contents(root) == expected, where
        count += 1
    logger.info("%d kills", count)
    assert count >= 12 // every and contents(root) == expected
    # The last one was killed when the set was there: who finds it takes no lock.
    assert set(hidden(cache)) <= {".demo.json", ".demo.lock"}, "what the killed ones left is taken away"


def test_a_manifest_is_whole_or_not_there_and_its_reports_are_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "work" / "cache"))
    for name in ("a", "b"):
        media_factory.write_media(
            tmp_path / "media" / name / "1.wav", seconds=0.5, video_codec=None, audio_codec="pcm_s16le"
        )
    output = tmp_path / "work" / "out.parquet"

    def work() -> None:
        prepare(PrepareOptions(str(tmp_path / "media"), output=output, workers=0, progress=False), lambda line: None)

    count = 0
    for where in kills(work, tmp_path / "work", every):
        if output.exists():
            assert len(Manifest.load(output)) == 2, where
        report, page = output.with_suffix(".json"), output.with_suffix(".html")
        if report.exists():
            assert json.loads(report.read_text())["digest"] == Manifest.load(output).digest, where
        if page.exists():
            assert page.read_text().rstrip().endswith("</html>"), where
        count += 1
    logger.info("%d kills", count)
    assert count >= 12 // every
    assert {path.name for path in output.parent.iterdir()} == {"out.parquet", "out.json", "out.html", "cache"}
    assert list(output.parent.glob(".*")) == [], "what the killed ones left is taken away"


WHOLE = """
import sys
from pathlib import Path
from small_runs import small_pretraining
from avssl.commands.pretrain import pretrain
pretrain(small_pretraining(Path(sys.argv[1]), 2, every=1))
"""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    if not long:
        pytest.skip("takes minutes: set AVSSL_TEST_LONG=1")
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    # In a process of its own, which also scans the data: torch and the server of processes do not outlive a fork.
    subprocess.run([sys.executable, "-c", WHOLE, str(tmp_path / "whole")], env=environment, check=True)
    run, count = tmp_path / "run", 0
    work = partial(pretrain, small_pretraining(run, 2, every=1))
    for where in kills(work, run, 5, terms=False):
        for checkpoint in run.glob("checkpoints/[!.]*.ckpt"):
            verify(checkpoint)
        page = run / "report.html"
        assert not page.exists() or page.read_text().rstrip().endswith("</html>"), where
        count += 1
    logger.info("%d kills", count)
    results = [json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, tmp_path / "whole")]
    assert results[0] == results[1]
    assert read_rows(run / "metrics.jsonl") == read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert not list(run.glob("*/.*.tmp*")) and not list(run.glob(".*.tmp*"))
