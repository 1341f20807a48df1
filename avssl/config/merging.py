"""Settings of several places as one: nested, the later over the earlier, without what belonged to something else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.config.recipes import Source
from avssl.errors import SettingsError
from avssl.models.settings import REGULARIZATION

# What belongs to the thing that a setting names: where a later source names another one, it goes.
BELONGS = {
    "audio.model": ("audio.options", "audio.num_mels"),
    "video.model": ("video.options", "video.pretrained", "video.crop_size", "data.num_frames", "data.frame_size"),
    "augment.mixup.kind": ("augment.mixup.probability", "augment.mixup.alpha"),
    "data.name": (
        "data.root", "data.options", "data.clip_seconds", "data.eval_clips", "data.eval_average",
        "data.heads", "data.split", "head_weights",
    ),
}  # fmt: skip
# A checkpoint brings its encoders with all their sizes.
_OF_CHECKPOINT = ("audio", "video", "data.num_frames", "data.frame_size")
NO_CHECKPOINT = (None, "none", "auto")


def merge(sources: Sequence[Source], takes_checkpoint: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The values of all sources in one, and a line on each that was left out.

    Of ``options`` and all other groups, given keys replace, others stay. But where a source names another model (or
    other data) than the sources before it, what those gave for the former one is left out, see :data:`BELONGS`. With
    ``takes_checkpoint`` a checkpoint counts as the name of its encoders.
    """
    merged: dict[str, Any] = {}
    lines: list[str] = []
    for source in sources:
        for name, owned in BELONGS.items():
            before, now = get_setting(merged, name), get_setting(source.values, name)
            if before is not None and now is not None and before != now:
                gone = [key for key in owned if drop_setting(merged, key)]
                if gone:
                    lines.append(f"{name} is {now}: {', '.join(gone)} given for {before} left out")
        checkpoint = get_setting(source.values, "checkpoint")
        if takes_checkpoint and checkpoint not in NO_CHECKPOINT and get_setting(merged, "checkpoint") != checkpoint:
            kept = {
                key: value
                for key, value in (get_setting(merged, "audio.options") or {}).items()
                if key in REGULARIZATION
            }
            pad = get_setting(merged, "audio.pad")
            gone = [key for key in _groups_of(str(checkpoint)) if drop_setting(merged, key)]
            if kept or pad is not None:
                merged["audio"] = ({"options": kept} if kept else {}) | ({} if pad is None else {"pad": pad})
            if gone:
                lines.append(f"the encoders are those of {checkpoint}: {', '.join(gone)} of the recipe left out")
        merged = overlay(merged, source.values)
    return merged, lines


def _groups_of(checkpoint: str) -> tuple[str, ...]:
    """The settings that a checkpoint brings: of a pretraining run both encoders', else the audio encoder's alone."""
    from avssl.checkpoint import run_settings  # which imports torch

    path = Path(checkpoint)
    run = path.parent.parent if path.suffix == ".ckpt" else path
    if settings := run_settings(run):
        pretrained = "embedding_dim" in settings
    else:
        pretrained = path.suffix == ".ckpt" or not path.is_dir()  # a file by itself: nearly always a pair's
    return _OF_CHECKPOINT if pretrained else ("audio",)


def nested(source: Source) -> Source:
    """``source`` with dotted keys as groups, and data that is a name alone as that of ``data``.

    Raises:
        SettingsError: two spellings of one setting give it different values, of which neither is the later one.
    """
    out: dict[str, Any] = {}
    for key, value in source.values.items():
        if key == "data" and isinstance(value, str | Path):
            value = {"name": str(value)}
        for part in reversed(str(key).split(".")[1:]):
            value = {part: value}
        group = {str(key).split(".")[0]: value}
        if clash := _clash(out, group):
            name, before, now = clash
            place = f"{source.name}: " if source.name else ""
            raise SettingsError(f"{place}{name}: is given twice, as {before!r} and as {now!r}; give one of them")
        out = overlay(out, group)
    return Source(source.name, out)


def _clash(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that both have with different values, and these."""
    for key in (key for key in one if key in other):
        before, now = one[key], other[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            if clash := _clash(before, now, f"{prefix}{key}."):
                return clash
        elif before != now:
            return f"{prefix}{key}", before, now
    return None


class Added(list[Any]):
    """Items that are added to the list of the sources before: ``--objectives+ '{name: sync}'``."""


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the settings of ``over``, group by group."""
    out = dict(under)
    for key, value in over.items():
        before = out.get(key)
        if isinstance(value, Added) and isinstance(before, list):
            value = type(before)([*before, *value])
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        out[key] = overlay(before, value) if both else value  # type: ignore[arg-type]
    return out


def get_setting(values: Mapping[str, Any], key: str) -> Any:
    """The setting of a dotted name; None where it is not given."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def drop_setting(values: dict[str, Any], key: str) -> bool:
    """Takes ``key`` out of ``values``; whether it was there."""
    first, _, rest = key.partition(".")
    if first not in values:
        return False
    if not rest:
        return bool(values.pop(first))
    inner = dict(values[first]) if isinstance(values[first], Mapping) else {}
    was_there = drop_setting(inner, rest)
    values[first] = inner
    return was_there
