import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from avssl.cli import parse
from avssl.config import CrossvalConfig, EvaluateConfig, FinetuneConfig, PretrainConfig, crossval_arguments
from avssl.data.catalog import find_entry, names
from avssl.data.datasets import get_dataset

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "datasets.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
# Commands that differ by the name of the data alone are parsed once.
DISTINCT = sorted({re.sub(r"(?<=--data )\S+|(?<=runs/)\S+", "NAME", command) for command in COMMANDS})
CONFIGS = {
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "pretrain": PretrainConfig,
    "crossval": CrossvalConfig,
}


@cache
def help_of(tool: str) -> str:
    done = subprocess.run([sys.executable, tool, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_name_has_a_section_with_its_commands() -> None:
    assert set(SECTIONS) == set(names())
    for name, text in SECTIONS.items():
        tools = re.findall(r"^python tools/(\w+)\.py", text, re.MULTILINE)
        assert tools == ["demo"] if name == "demo" else {"prepare", "finetune", "evaluate"} <= set(tools), name
        assert f"](#{name})" in PAGE


@pytest.mark.parametrize("command", DISTINCT)
def test_every_command_has_options_that_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    python, tool, *arguments = shlex.split(command)
    assert python == "python" and Path(tool).is_file()
    config_class = CONFIGS.get(Path(tool).stem)
    if config_class is not None:
        parse(config_class, crossval_arguments(arguments))  # exits with an error at an unknown option
        return
    for flag in filter(lambda argument: argument.startswith("--"), arguments):
        assert re.search(rf"{flag}\b", help_of(tool)), flag


def test_every_name_is_used_in_a_command() -> None:
    named = {match for command in COMMANDS for match in re.findall(r"--data (\S+)", command)} - {"NAME"}
    assert named == set(names()) - {"demo"}


def test_options_that_the_page_names_exist() -> None:
    for name, text in SECTIONS.items():
        for words in re.findall(r"`(\w+): [^`]*`", text):
            assert words in get_dataset(find_entry(name).dataset).options, f"{name}: {words}"
        for example in re.findall(r"--data\.options '([^']*)'", text):
            assert set(yaml.safe_load(example)) <= set(get_dataset(find_entry(name).dataset).options)
