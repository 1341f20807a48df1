"""The measurements of a GPU keep what they found, whatever happens to the rest, and run on a CPU with small models."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_measurements  # noqa: E402  (a script, of no package)


def measured(folder: Path, *options: str) -> dict[str, Any]:
    gpu_measurements.main([str(folder), "--device", "cpu", "--tiny", *options])
    (file,) = folder.iterdir()
    return json.loads(file.read_text())


def test_small_models_on_a_cpu(tmp_path: Path) -> None:
    found = measured(tmp_path, "--parts", "blocks", "training", "pretraining", "finetuning", "log_mel")
    assert found["computes"] and "not measured" not in found
    assert found["training"]["eager, batch 2, speedup"] > 0
    errors = found["training"]["eager, batch 2, mast_nano"]["errors"]
    assert 0 < errors["logits"] < 0.05 and 0 < errors["gradient"] < 0.2, "bf16 against float32"
    for part in ("pretraining", "finetuning"):
        assert found[part]["batch 2, compile False, graphs off"]["clips_per_s"] > 0
    assert found["log_mel"]["largest difference from it"] < 1e-3
    assert found["log_mel"]["operator by operator"]["difference"] == 0


def test_a_part_that_fails_leaves_the_others_and_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(to: gpu_measurements.Measurements) -> None:
        to.put("tiles", "first", 1)
        assert json.loads(next(tmp_path.iterdir()).read_text())["tiles"] == {"first": 1}, "written after every number"
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setitem(gpu_measurements.PARTS, "tiles", fails)
    found = measured(tmp_path, "--parts", "tiles", "machine")
    assert found["tiles"] == {"first": 1} and "no memory" in found["not measured"]["tiles"]
    assert found["machine"] and found["run"]["seconds left"] > 0


def test_nothing_starts_without_the_time_that_it_needs(tmp_path: Path) -> None:
    found = measured(tmp_path, "--minutes", "0.1", "--call", "3")
    assert set(found["not measured"]) == set(gpu_measurements.CALLS[3])


def test_all_parts_belong_to_a_call() -> None:
    assert sorted(part for parts in gpu_measurements.CALLS.values() for part in parts) == sorted(gpu_measurements.PARTS)
