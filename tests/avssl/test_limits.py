"""What a picture and a clip may cost is a setting of every command that decodes, and its processes are told."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from avssl.commands import augment, cache, embed, export, prepare
from avssl.config import (
    AugmentSheetConfig,
    CacheConfig,
    DataConfig,
    EmbedConfig,
    EmbedDataConfig,
    ExportConfig,
    ExportDataConfig,
    PrepareOptions,
    SourceConfig,
)
from avssl.data import folds, splits
from avssl.data.processes import server
from avssl.limits import MAX_CLIP_BYTES, Limits, limits, set_limits
from avssl.saved_runs import TrainingSettings

GIVEN = {"max_pixels": 4321, "max_clip_bytes": 98765}


@pytest.fixture(autouse=True)
def restored(limited) -> None:
    limited(Limits())


class Opened(Exception):
    """Data are about to be opened."""


CALLS: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "training and evaluation": (
        splits, "open_data",
        lambda: splits.open_splits(DataConfig("demo", **GIVEN), modalities=("audio",), labelled=True),
    ),
    "folds": (folds, "list_data", lambda: folds.make_folds(DataConfig("esc50", **GIVEN), "fold=1..2", None, 0, Path())),
    "embed": (
        embed, "open_data",
        lambda: embed.select(EmbedConfig("run", Path("x"), EmbedDataConfig("demo", **GIVEN)), None),  # type: ignore
    ),
    "export": (
        splits, "open_data",
        lambda: export.open_clips(
            ExportConfig("run", Path("x.onnx"), data=ExportDataConfig("demo", clip_seconds=1.0, **GIVEN)),
            TrainingSettings(),
        ),
    ),
    "cache": (cache, "open_data", lambda: cache.cache(CacheConfig("out", SourceConfig("demo", **GIVEN)))),
    "prepare": (
        prepare, "list_data", lambda: prepare.prepare(PrepareOptions("demo", **GIVEN), tell=print)
    ),
    "augment": (
        augment, "open_data", lambda: augment.read_clips(AugmentSheetConfig(data=DataConfig("demo", **GIVEN)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", CALLS)
def test_every_command_that_decodes_takes_its_limits(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise Opened(limits())

    module, name, call = CALLS[command]
    monkeypatch.setattr(module, name, opened)
    with pytest.raises(Opened) as raised:
        call()
    assert raised.value.args == (Limits(**GIVEN),)


def test_decoding_processes_are_told() -> None:
    set_limits(DataConfig(max_pixels=5))
    with ProcessPoolExecutor(1, mp_context=server()) as pool:
        assert pool.submit(limits).result() == Limits(5, MAX_CLIP_BYTES)
    set_limits(DataConfig(max_clip_bytes=7))  # the server has started before
    with ProcessPoolExecutor(1, mp_context=server()) as pool:
        assert pool.submit(limits).result() == Limits(max_clip_bytes=7)


def test_a_sample_of_a_cache_may_be_longer_than_a_clip() -> None:
    assert SourceConfig().max_clip_bytes > DataConfig().max_clip_bytes == MAX_CLIP_BYTES == Limits().max_clip_bytes
