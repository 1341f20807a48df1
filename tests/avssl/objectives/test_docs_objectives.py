"""docs/objectives.md: its table names every objective, and its recipes are recipes."""

import re
from pathlib import Path

from objective_steps import SHAPES

from avssl.config import PretrainConfig
from avssl.objectives import create_objectives, list_objectives

PAGE = (Path(__file__).parents[3] / "docs" / "objectives.md").read_text()


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
