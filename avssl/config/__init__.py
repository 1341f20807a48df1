"""Typed configuration of a run: dataclasses, filled from YAML deltas and dotted command-line overrides.

Defaults hold for any data and model; the sizes of a run are in its recipe (``configs/``), which :func:`resolve` puts
between the defaults and what is given. A config stops at construction: modules take keyword arguments and never see
these classes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from avssl.augment.settings import AugmentConfig, MixupConfig
from avssl.config.options import given_options
from avssl.config.resolution import demo_settings, resolve
from avssl.config.runs import (
    AugmentSheetConfig,
    CrossvalConfig,
    DemoConfig,
    EmbedConfig,
    EmbedDataConfig,
    EvaluateConfig,
    ExportConfig,
    ExportDataConfig,
    FinetuneConfig,
    PretrainConfig,
)
from avssl.config.sources import CONFIGS, Source
from avssl.data.settings import CacheConfig, DataConfig, PrepareOptions, SourceConfig
from avssl.models.settings import AudioConfig, BottleneckConfig, VideoConfig
from avssl.training.settings import LogConfig, OptimConfig, RuntimeConfig, WandbConfig
from avssl.urls import hidden

__all__ = [
    "CONFIGS",
    "AudioConfig",
    "AugmentConfig",
    "AugmentSheetConfig",
    "BottleneckConfig",
    "CacheConfig",
    "CrossvalConfig",
    "DataConfig",
    "DemoConfig",
    "EmbedConfig",
    "EmbedDataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ExportDataConfig",
    "FinetuneConfig",
    "LogConfig",
    "MixupConfig",
    "OptimConfig",
    "PrepareOptions",
    "PretrainConfig",
    "RuntimeConfig",
    "Source",
    "SourceConfig",
    "VideoConfig",
    "WandbConfig",
    "demo_settings",
    "given_options",
    "resolve",
    "to_dict",
    "to_yaml",
]


def to_dict(config: Any) -> dict[str, Any]:
    """``config`` as plain JSON- and YAML-able values, URLs without credentials."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else hidden(value)

    return plain(asdict(config))


def to_yaml(config: Any) -> str:
    """``config`` as YAML that ``--config`` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
