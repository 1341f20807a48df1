"""Result files: strict JSON, atomic, with where they come from."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.evaluation.result import provenance, read_result, write_result
from avssl.files import atomic_path


@dataclass
class Inner:
    path: Path


def test_non_finite_numbers_become_null_at_any_depth(tmp_path):
    result = {
        "a": float("nan"),
        "b": [np.float32("inf"), np.int64(3), {"c": torch.tensor([1.0, float("-inf")])}],
        "d": np.array([[1.5, np.nan]]),
        "e": Inner(Path("x")),
        "f": (True, None, "ü"),
        "g": {"z", "y"},
        7: torch.tensor(2),
    }
    write_result(tmp_path / "r" / "result.json", result)
    text = (tmp_path / "r" / "result.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert "ü" in text and read_result(tmp_path / "r" / "result.json") == {
        "a": None, "b": [None, 3, {"c": [1.0, None]}], "d": [[1.5, None]], "e": {"path": "x"},
        "f": [True, None, "ü"], "g": ["y", "z"], "7": 2,
    }  # fmt: skip


def test_unknown_type_is_refused_and_the_old_file_stays(tmp_path):
    write_result(tmp_path / "result.json", {"a": 1})
    with pytest.raises(TypeError, match="object"):
        write_result(tmp_path / "result.json", {"a": object()})
    assert read_result(tmp_path / "result.json") == {"a": 1}


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_provenance_is_json_and_names_torch():
    record = json.loads(json.dumps(provenance()))
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["date"].endswith("+00:00")
    assert set(record) >= {"revision", "python", "platform"}
