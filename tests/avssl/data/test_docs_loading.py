import re
import shlex
from pathlib import Path

import pytest

from avssl.cli import parse, switch_on
from avssl.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from avssl.config.cache import CacheConfig

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "loading.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
CONFIGS = {"finetune": FinetuneConfig, "evaluate": EvaluateConfig, "pretrain": PretrainConfig, "cache": CacheConfig}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_options_that_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    python, tool, *arguments = shlex.split(command)
    assert python == "python" and Path(tool).is_file()
    parse(CONFIGS[Path(tool).stem], switch_on(arguments, "--verify"))  # exits with an error at an unknown option


def test_defaults_and_options_that_the_page_names_are_so() -> None:
    config = CacheConfig("x")
    assert f"`--short_side` ({config.short_side})" in PAGE and f"`--quality` {config.quality}," in PAGE
    assert f"works through {PretrainConfig().data.shard_buffer} shards" in PAGE
    for option in re.findall(r"`--data\.(\w+)", PAGE):
        assert hasattr(config.data, option) or hasattr(PretrainConfig().data, option), option
    for script in re.findall(r"`python (benchmarks/\w+\.py)`", PAGE):
        assert (REPOSITORY / script).is_file()
