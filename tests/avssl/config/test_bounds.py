"""What the numbers of a config may be: told at once, in the shell and in Python, whatever the folder holds."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

import avssl
from avssl.bounds import bounds_of
from avssl.cli import read_settings
from avssl.config import (
    AugmentSheetConfig,
    CacheConfig,
    CrossvalConfig,
    DemoConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    OptimConfig,
    PrepareOptions,
    PretrainConfig,
)
from avssl.errors import SettingsError

CONFIGS = [
    PretrainConfig, FinetuneConfig, CrossvalConfig, EvaluateConfig, AugmentSheetConfig, DemoConfig, EmbedConfig,
    ExportConfig, CacheConfig, PrepareOptions,
]  # fmt: skip


def kinds(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in get_args(hint):
        yield from kinds(inner)


def parts(kind: type) -> Iterator[type]:
    yield kind
    for hint in get_type_hints(kind).values():
        for inner in kinds(hint):
            if is_dataclass(inner):
                yield from parts(inner)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_of_every_config_has_a_bound(config: type) -> None:
    for part in parts(config):
        hints = get_type_hints(part)
        numbers = {item.name for item in fields(part) if {int, float} & set(kinds(hints[item.name]))}
        assert bounds_of(part).keys() == numbers, part


WRONG = {
    "optim.max_steps": ["0", "-3"],
    "optim.batch_size": ["0"],
    "optim.accumulate": ["0"],
    "optim.epochs": ["0", ".nan"],
    "optim.lr": ["-1e-3", "0", ".nan", ".inf"],
    "optim.warmup": ["1.5", "-0.1"],
    "optim.betas": ["[0.9, 1.0]", "[-0.1, 0.9]"],
    "optim.weight_decay": ["-1"],
    "data.clip_seconds": ["0", "-2", ".nan", ".inf"],
    "data.val_fraction": ["1.5", "1.0"],
    "data.num_workers": ["-1"],
    "data.max_pixels": ["0", "2147483648"],
    "data.channel": ["-1"],
    "augment.flip": ["2"],
    "augment.mix_db": ["[20, 5]"],
    "log.every": ["0"],
    "seed": ["-1", "4294967296"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_out_of_bounds_is_told_by_its_name_in_the_shell(name: str, value: str) -> None:
    told = rf"^{name}: must (be (above|at least) [\d.]+|lie in \S+ \S+( the smaller first)?)( and finite)?, got [^\n]+$"
    for config in (PretrainConfig, FinetuneConfig):
        with pytest.raises(SettingsError, match=told):
            read_settings(config, ["--data", "demo", f"--{name}", value])


def test_a_value_out_of_bounds_is_told_in_python_and_of_a_file(tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"^optim.lr: must be above 0, got -1.0$"):
        avssl.pretrain(data="demo", optim={"lr": -1})
    with pytest.raises(SettingsError, match=r"^optim.lr: must be above 0, got -1.0$"):
        avssl.finetune(FinetuneConfig(optim=OptimConfig(lr=-1.0)))
    with pytest.raises(SettingsError, match=r"^few_label_draws: must be at least 1, got 0$"):
        avssl.evaluate(checkpoint="run", few_label_draws=0)
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {warmup: 10}\n")
    with pytest.raises(SettingsError, match=rf"^{file}: optim.warmup: must lie in \[0, 1\], got 10.0$"):
        avssl.pretrain(file)


def test_bounds_let_their_ends_and_what_is_no_number_pass() -> None:
    options = [
        "--data.val_fraction",
        "0",
        "--optim.warmup",
        "1",
        "--data.train_fraction",
        "1",
        "--data.channel",
        "mean",
    ]
    assert read_settings(PretrainConfig, ["--data", "demo", *options]).data.channel == "mean"
    assert read_settings(CrossvalConfig, ["--data", "demo", "--folds", "fold=1..5"]).folds == "fold=1..5"
