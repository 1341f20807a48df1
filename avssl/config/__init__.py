"""Typed configuration of a run: dataclasses, filled from YAML deltas and dotted command-line overrides.

The defaults are the demo's, so that a tool with no arguments runs it. A config stops at construction: modules take
keyword arguments and never see these classes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from avssl.config.crossval import CrossvalConfig, crossval_arguments
from avssl.config.parts import (
    AudioConfig,
    AugmentConfig,
    BottleneckConfig,
    DataConfig,
    LogConfig,
    OptimConfig,
    RuntimeConfig,
    VideoConfig,
    WandbConfig,
)
from avssl.config.prepare import PrepareOptions
from avssl.config.runs import AugmentSheetConfig, DemoConfig, EvaluateConfig, FinetuneConfig, PretrainConfig

# Recipes of runs: files in a wheel, in a clone a link to its folder configs.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"

__all__ = [
    "CONFIGS",
    "AudioConfig",
    "AugmentConfig",
    "AugmentSheetConfig",
    "BottleneckConfig",
    "CrossvalConfig",
    "DataConfig",
    "DemoConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "LogConfig",
    "OptimConfig",
    "PrepareOptions",
    "PretrainConfig",
    "RuntimeConfig",
    "VideoConfig",
    "WandbConfig",
    "crossval_arguments",
    "to_dict",
    "to_yaml",
]


def to_dict(config: Any) -> dict[str, Any]:
    """``config`` as plain JSON- and YAML-able values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))


def to_yaml(config: Any) -> str:
    """``config`` as YAML that ``--config`` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
