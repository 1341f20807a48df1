"""docs/objectives.md: its worked example works, and its table names every objective."""

import re
from pathlib import Path

import pytest
from objective_steps import SHAPES, exact_batch, exact_task

from avssl.config import PretrainConfig
from avssl.objectives import base, create_objective, create_objectives, list_objectives

PAGE = (Path(__file__).parents[3] / "docs" / "objectives.md").read_text()


def test_the_example_registers_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_OBJECTIVES", dict(base._OBJECTIVES))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "docs/objectives.md", "exec"), {"__name__": "docs"})
    assert list_objectives()["cosine"].startswith("Pulls audio and video of a clip together")
    task = exact_task([(name, create_objective(name, SHAPES), 1.0) for name in ("cosine", "vicreg")])
    losses, report = task(exact_batch())
    assert 0 <= losses["cosine"].item() <= 2 and "cosine/similarity" in report
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in task.pair.parameters())


def test_the_page_names_every_objective() -> None:
    table = PAGE[PAGE.index("| name |") : PAGE.index("CAV-MAE's")]
    assert set(re.findall(r"`(\w+)`", table.replace("data.train_clips", ""))) == set(list_objectives())


def test_the_yamls_are_configs(tmp_path: Path) -> None:
    from avssl.cli import parse

    found = []
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / "terms.yaml").write_text(text)
        config = parse(PretrainConfig, ["--config", str(tmp_path / "terms.yaml")])
        terms = create_objectives(config.objectives, SHAPES)
        found.append([(name, weight, objective.projected_by) for name, objective, weight in terms])
    assert found[0] == [("infonce", 1.0, "infonce"), ("ntxent", 0.5, "ntxent")]
    assert found[1] == [("infonce", 1.0, "infonce"), ("vicreg", 0.2, "infonce")]
