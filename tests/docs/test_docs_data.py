import re
from pathlib import Path

from avssl.config import CacheConfig, PretrainConfig

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")


def test_defaults_and_options_that_the_page_names_are_so() -> None:
    config = CacheConfig("x")
    assert f"`--short_side` ({config.short_side})" in PAGE and f"`--quality` {config.quality}," in PAGE
    assert f"works through {PretrainConfig().data.shard_buffer} shards" in PAGE
    for option in re.findall(r"`--data\.(\w+)", PAGE):
        assert hasattr(config.data, option) or hasattr(PretrainConfig().data, option), option
    for script in re.findall(r"`python (benchmarks/\w+\.py)`", PAGE):
        assert (REPOSITORY / script).is_file()
