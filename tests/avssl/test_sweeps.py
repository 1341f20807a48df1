"""Sweep files: W&B can read them, the tools take what agents pass, and runs log what is searched for."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from avssl.cli import parse
from avssl.config import PretrainConfig, to_dict

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def samples(parameter: dict[str, Any]) -> list[Any]:
    """Values that W&B may draw: each of a list, both ends and the middle of a range."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    low, high = parameter["min"], parameter["max"]
    middle = {"uniform": (low + high) / 2, "log_uniform_values": math.sqrt(low * high)}[parameter["distribution"]]
    assert low < high
    return [low, middle, high]


def field(config: Any, name: str) -> Any:
    value = to_dict(config)
    for part in name.split("."):
        assert part in value, f"{name} is no setting"
        value = value[part]
    return value


def command_line(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The command that an agent runs, by W&B's own code: interpreter, program, arguments."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros = arguments | {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    command: list[str] = []
    for part in create_sweep_command(sweep.get("command")):
        command += macros[part[2:-1]] if part.startswith("${") else [part]
    return command


def test_there_is_a_sweep() -> None:
    assert "pretrain.yaml" in [path.name for path in SWEEPS]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_agents_command_is_understood(path: Path) -> None:
    sweep = load_sweep_config(str(path))
    assert sweep == yaml.safe_load(path.read_text())
    assert sweep["method"] in ("bayes", "random", "grid") and sweep["metric"]["goal"] in ("maximize", "minimize")
    drawn = {name: samples(parameter) for name, parameter in sweep["parameters"].items()}
    for number in range(max(map(len, drawn.values()))):
        values = {name: choices[number % len(choices)] for name, choices in drawn.items()}
        command = command_line(sweep, values)
        assert command[:3] == ["/usr/bin/env", "python", sweep["program"]] and (ROOT / command[2]).is_file()
        config = parse(PretrainConfig, command[3:])
        for name, value in values.items():
            found = field(config, name)
            if name == "objectives":
                wanted = yaml.safe_load(value)
                assert [{key: term[key] for key in keys} for term, keys in zip(found, wanted, strict=True)] == wanted
            else:
                assert found == pytest.approx(value)
