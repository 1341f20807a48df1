"""examples/tutorial.ipynb: its code runs from top to bottom; it is committed with outputs and without machine paths."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"
CELLS = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On fewer clips, and for fewer steps."""
    code = "\n".join(CODE)
    for name, few in (("pretrain", 8), ("train_per_class", 1), ("test_per_class", 1), ("max_steps", 1)):
        code, count = re.subn(rf'"{name}": \d+', f'"{name}": {few}', code)
        assert count
    code = re.sub(r'"batch_size": \d+', '"batch_size": 4', code)
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(code, PAGE.name, "exec"), scope)
    assert re.search(
        r"^chance/R@1: 0\.\d\d\n(.*\n)*0\.0 to 1\.2 s: \w+ 0\.\d\d$", capsys.readouterr().out, re.MULTILINE
    )
    assert set(scope["found"].metrics) >= {"probe/event/top1", "knn/event/top1"}


def test_it_is_executed_and_names_no_machine() -> None:
    executed = [cell for cell in CELLS if cell["cell_type"] == "code" and cell["execution_count"]]
    assert len(executed) == len(CODE) and sum(bool(cell["outputs"]) for cell in executed) >= 5
    assert not [cell for cell in executed for output in cell["outputs"] if output["output_type"] == "error"]
    assert not re.search(r"[\"' ](/[a-z]+/|[A-Z]:\\)", json.dumps([cell.get("outputs") for cell in CELLS]))
