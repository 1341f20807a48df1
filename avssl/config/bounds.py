"""What the numbers of a config may be: one table, which the shell, the API and every run are checked against."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from avssl.augment.settings import AugmentConfig, MixupConfig
from avssl.config.cache import CacheConfig, SourceConfig
from avssl.config.crossval import CrossvalConfig
from avssl.config.inference import EmbedConfig, EmbedDataConfig, ExportConfig, ExportDataConfig
from avssl.config.parts import AudioConfig, BottleneckConfig, VideoConfig
from avssl.config.prepare import PrepareOptions
from avssl.config.runs import AugmentSheetConfig, DemoConfig, EvaluateConfig, FinetuneConfig, PretrainConfig
from avssl.data.settings import DataConfig
from avssl.errors import SettingsError
from avssl.training.settings import LogConfig, OptimConfig, RuntimeConfig


@dataclass(frozen=True)
class Bound:
    """Finite numbers from ``low`` to ``high``; of a list, all of its numbers.

    Attributes:
        low, high: Least and largest value.
        above, below: Whether ``low`` and ``high`` themselves are excluded.
        ascending: Whether no number of a list may be smaller than the one before it.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    ascending: bool = False

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is within; what is no number, such as none or a name, is not judged."""
        if isinstance(value, list | tuple):
            numbers = [item for item in value if _is_number(item)]
            return all(map(self.holds, value)) and not (self.ascending and numbers != sorted(numbers))
        if not _is_number(value):
            return True
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and math.isfinite(value)

    def __str__(self) -> str:
        order = ", the smaller first" if self.ascending else ""
        if math.isinf(self.low):
            return f"must be finite{order}"
        if math.isinf(self.high):
            return f"must be {'above' if self.above else 'at least'} {self.low:g}{order}"
        brackets = "(" if self.above else "[", ")" if self.below else "]"
        return f"must lie in {brackets[0]}{self.low:.10g}, {self.high:.10g}{brackets[1]}{order}"


_ANY = Bound()
_POSITIVE = Bound(0, above=True)
_NOT_NEGATIVE = Bound(0)
_COUNT = Bound(1)
_SHARE = Bound(0, 1)
_BELOW_1 = Bound(0, 1, below=True)
_SEED = Bound(0, 2**32 - 1)  # NumPy's
_LIMITS = {"max_pixels": Bound(1, 2**31 - 1), "max_clip_bytes": _COUNT}  # the first is FFmpeg's

# The bounds of each class's own settings; a class has those of its bases, too.
BOUNDS: dict[type, dict[str, Bound]] = {
    DataConfig: {
        "clip_seconds": _POSITIVE, "num_frames": _COUNT, "frame_size": _COUNT, "channel": _NOT_NEGATIVE,
        "eval_clips": _COUNT, "train_clips": _COUNT, "val_fraction": _BELOW_1, "test_fraction": _BELOW_1,
        "train_fraction": Bound(0, 1, above=True), "shard_buffer": _COUNT, "num_workers": _NOT_NEGATIVE,
        "max_failures": _SHARE, "clip_timeout": _POSITIVE, **_LIMITS,
    },
    AudioConfig: {
        "sample_rate": _COUNT, "num_mels": _COUNT, "mean": _ANY, "std": _POSITIVE, "frame_shift_ms": _POSITIVE,
        "fixed_frames": _COUNT,
    },
    VideoConfig: {"crop_size": _COUNT},
    BottleneckConfig: {
        "tokens": _COUNT, "width": _COUNT, "depth": _COUNT, "start": _NOT_NEGATIVE, "heads": _COUNT,
        "dropout": _BELOW_1,
    },
    AugmentConfig: {
        "crop_scale": Bound(0.01, 1), "crop_ratio": Bound(1, 10), "flip": _SHARE, "color": _SHARE,
        "hue": Bound(0, 0.5), "gray": _SHARE, "blur": _SHARE, "blur_sigma": Bound(0.01, 50, ascending=True),
        "gain_db": Bound(0, 60), "time_shift": _SHARE, "mix": _SHARE, "mix_db": Bound(-60, 100, ascending=True),
        "noise_db": Bound(-60, 100), "spec_warp": _SHARE, "time_mask": _SHARE, "freq_mask": _SHARE,
        "masks": Bound(0, 100), "patch_drop": _SHARE, "patch_size": _COUNT,
    },
    MixupConfig: {"probability": _SHARE, "alpha": Bound(0, 1000, above=True)},
    OptimConfig: {
        "batch_size": _COUNT, "chunk": _COUNT, "accumulate": _COUNT, "epochs": _POSITIVE, "max_steps": _COUNT,
        "lr": _POSITIVE, "base_batch": _COUNT, "min_lr": _NOT_NEGATIVE, "warmup": _SHARE,
        "weight_decay": _NOT_NEGATIVE, "betas": _BELOW_1, "clip_grad": _NOT_NEGATIVE,
        "layer_decay": Bound(0, 1, above=True), "ema": _BELOW_1,
    },
    RuntimeConfig: {"devices": Bound(-1), "num_nodes": _COUNT, "threads": _COUNT},
    LogConfig: {
        "every": _COUNT, "validate_every": _NOT_NEGATIVE, "checkpoint_every": _NOT_NEGATIVE,
        "keep_every": _NOT_NEGATIVE, "patience": _NOT_NEGATIVE,
    },
    PretrainConfig: {
        "embedding_dim": _COUNT, "time_bins": _COUNT, "teacher_momentum": _SHARE, "collapse_rank": _NOT_NEGATIVE,
        "seed": _SEED,
    },
    FinetuneConfig: {"label_smoothing": _BELOW_1, "head_weights": _POSITIVE, "seed": _SEED},
    CrossvalConfig: {"folds": Bound(2), "seeds": _SEED},
    EvaluateConfig: {
        "knn_k": _COUNT, "few_label_draws": _COUNT, "worst_classes": _COUNT, "sls": Bound(0, 5), "batch_size": _COUNT,
        "seed": _SEED,
    },
    AugmentSheetConfig: {"clips": _COUNT, "views": _COUNT, "seed": _SEED},
    DemoConfig: {"seed": _SEED},
    EmbedDataConfig: {
        "clip_seconds": _POSITIVE, "num_frames": _COUNT, "frame_size": _COUNT, "channel": _NOT_NEGATIVE,
        "num_workers": _NOT_NEGATIVE, "clip_timeout": _POSITIVE, **_LIMITS,
    },
    EmbedConfig: {"num_windows": _COUNT, "hop": _POSITIVE, "batch_size": _COUNT, "part_size": _COUNT},
    ExportDataConfig: {
        "clip_seconds": _POSITIVE, "channel": _NOT_NEGATIVE, "max_clips": _COUNT, "num_workers": _NOT_NEGATIVE,
        **_LIMITS,
    },
    ExportConfig: {"tolerance": _NOT_NEGATIVE, "batch_size": _COUNT, "threads": _NOT_NEGATIVE},
    SourceConfig: _LIMITS,
    CacheConfig: {
        "short_side": _COUNT, "fps": _POSITIVE, "quality": Bound(1, 95), "sample_rate": _COUNT,
        "channel": _NOT_NEGATIVE, "samples_per_shard": _COUNT, "workers": _NOT_NEGATIVE,
    },
    PrepareOptions: {
        "workers": _NOT_NEGATIVE, "clips": _COUNT, "seed": _SEED, "sample_rate": _COUNT, "num_mels": _COUNT,
        "channel": _NOT_NEGATIVE, "clip_seconds": _POSITIVE, **_LIMITS,
    },
}  # fmt: skip


def bounds_of(kind: type) -> dict[str, Bound]:
    """The bounds of the settings of a config class, those of its parts apart."""
    return {name: bound for base in reversed(kind.__mro__) for name, bound in BOUNDS.get(base, {}).items()}


def check_bounds(config: Any, prefix: str = "") -> None:
    """Checks every number of a config.

    Args:
        config: Any config or a part of one.
        prefix: Of its settings' names, for example "data.".

    Raises:
        SettingsError: the first that is out of bounds, in one line that begins with its name and says what it may be.
    """
    for name, value, bound in _bounded(config, prefix):
        if not bound.holds(value):
            shown = list(value) if isinstance(value, tuple) else value
            finite = " and finite" if value == math.inf and bound.high == math.inf else ""
            raise SettingsError(f"{name}: {bound}{finite}, got {shown}")


def _bounded(config: Any, prefix: str) -> Iterator[tuple[str, Any, Bound]]:
    bounds = bounds_of(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _bounded(value, f"{prefix}{item.name}.")
        elif item.name in bounds:
            values = {f".{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {"": value}
            for key, one in values.items():
                yield f"{prefix}{item.name}{key}", one, bounds[item.name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
