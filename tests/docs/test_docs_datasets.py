import re
from pathlib import Path

import yaml

from avssl.data.catalog import find_entry, names
from avssl.data.datasets import get_dataset

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "datasets.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_every_name_has_a_section_with_its_commands() -> None:
    assert set(SECTIONS) == set(names())
    for name, text in SECTIONS.items():
        tools = re.findall(r"^python tools/(\w+)\.py", text, re.MULTILINE)
        assert tools == ["demo"] if name == "demo" else {"prepare", "finetune", "evaluate"} <= set(tools), name
        assert f"](#{name})" in PAGE


def test_the_table_tells_the_protocol_of_every_name() -> None:
    rows = re.findall(r"^\|([^|]+)\|.*\| (\d+) x ([\d.]+) s \|", PAGE, re.MULTILINE)
    told = {name: (float(s), int(n)) for names, n, s in rows for name in re.findall(r"\[([\w-]+)\]", names)}
    entries = {name: find_entry(name) for name in names()}
    assert told == {name: (entry.clip_seconds, entry.eval_clips) for name, entry in entries.items()}


def test_every_name_is_used_in_a_command() -> None:
    named = {match for command in COMMANDS for match in re.findall(r"--data (\S+)", command)} - {"NAME"}
    assert named == set(names()) - {"demo"}


def test_options_that_the_page_names_exist() -> None:
    for name, text in SECTIONS.items():
        for words in re.findall(r"`(\w+): [^`]*`", text):
            assert words in get_dataset(find_entry(name).dataset).options, f"{name}: {words}"
        for example in re.findall(r"--data\.options '([^']*)'", text):
            assert set(yaml.safe_load(example)) <= set(get_dataset(find_entry(name).dataset).options)
