"""The folds of a cross-validation: each one a data config whose training and test split are its own."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from avssl.data.catalog import find_entry, list_data, open_data
from avssl.data.datasets import get_dataset
from avssl.data.failures import DataError
from avssl.data.manifest import LABEL_PREFIX, Manifest
from avssl.data.manifest_checks import COLUMNS
from avssl.data.settings import DataConfig
from avssl.data.strata import row_groups, strata
from avssl.limits import set_limits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """A fold: ``name`` says which rows are tested, for example "fold 3" or "speaker george"; ``data`` opens it."""

    name: str
    data: DataConfig

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"[^\w.]+", "-", self.name).strip("-")


def make_folds(data: DataConfig, folds: int | str, group_by: str | None, seed: int, folder: Path) -> list[Fold]:
    """The folds of ``data``, at least two.

    Args:
        data: What to divide.
        folds: official, a number, or OPTION=VALUES, see :class:`avssl.config.CrossvalConfig`.
        group_by: Column or head whose values stay together; None: clips of one file, recording, video or speaker do.
        seed: Seed of random folds.
        folder: Where the manifests of folds are written that the data set does not divide itself.

    Raises:
        ValueError: settings that say nothing, or contradict each other.
        DataError: the data cannot be divided so; the message says what can be done instead.
    """
    set_limits(data)
    text = str(folds)
    if "=" in text:
        if group_by is not None:
            raise ValueError(f"folds {text} and group_by {group_by} both divide the data: give one of them")
        return _option_folds(data, text)
    if not text.isdecimal() and text != "official":
        raise ValueError(f"folds: {text!r} is neither official, nor a number, nor OPTION=VALUES such as fold=1..5")
    if text == "official" and group_by is None:
        if official := _official_folds(data):
            return official
        group_by = "fold"
    return _manifest_folds(data, int(text) if text.isdecimal() else None, group_by, seed, folder)


def _option_folds(data: DataConfig, text: str) -> list[Fold]:
    option, _, listed = text.partition("=")
    if match := re.fullmatch(r"\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*", listed):
        values: Any = list(range(int(match[1]), int(match[2]) + 1))
    else:
        try:
            values = yaml.safe_load(listed if listed.lstrip().startswith("[") else f"[{listed}]")
        except yaml.YAMLError as error:
            raise ValueError(f"folds: cannot read {listed!r}: {' '.join(str(error).split())}") from error
    if len(values) < 2:
        raise ValueError(f"folds: {text} names {len(values)} fold; a cross-validation has at least two")
    names = [
        f"{option} {' '.join(map(str, value)) if isinstance(value, list) else value}".replace("_", " ")
        for value in values
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"folds: {text} names a fold twice")
    made = [
        Fold(name, replace(data, options={**data.options, option: value}))
        for name, value in zip(names, values, strict=True)
    ]
    for fold in made:  # a wrong option or value is told now, not after hours
        list_data(data.name, data.root, fold.data.options)
    return made


def _official_folds(data: DataConfig) -> list[Fold]:
    """The folds of a data set with the option "fold"; none where it has no such option."""
    if Path(data.name).suffix == ".parquet" or "fold" not in get_dataset(find_entry(data.name).dataset).options:
        return []
    listed, _ = list_data(data.name, data.root, {**data.options, "fold": None})
    numbers = sorted({int(fold) for fold in listed.column("fold") if fold is not None})
    return _option_folds(data, f"fold={numbers}")


def _manifest_folds(data: DataConfig, count: int | None, group_by: str | None, seed: int, folder: Path) -> list[Fold]:
    """Folds that are manifests of their own: everything labelled is dealt out anew."""
    manifest = open_data(data.name, root=data.root, options=data.options)
    entry = find_entry(data.name)
    heads = data.heads or ([entry.head] if entry.head else list(manifest.heads))
    unknown = set(heads) - set(manifest.heads)
    if unknown or not heads:
        raise DataError(f"{data.name} has no head {sorted(unknown)}; it has {sorted(manifest.heads) or 'none'}")
    groups = None if group_by is None else _groups(manifest, group_by, data.name)
    kept = np.array([any(labelled) for labelled in zip(*(_labelled(manifest, head) for head in heads), strict=True)])
    kept &= np.array(manifest.column("split")) != "pretrain"
    if groups is not None:
        kept &= np.array([group is not None for group in groups])
        groups = [group for group, keep in zip(groups, kept, strict=True) if keep]
    if not kept.all():
        logger.info("%s: %d of %d clips have what the folds need", data.name, kept.sum(), len(kept))
    manifest = manifest.select(mask=kept)
    if groups is None and count is not None:
        joined, together = row_groups(manifest, ignore=heads)
        if "speaker" in together and joined.max() + 1 < count:
            logger.warning("%s: too few speakers for %d folds: clips of a speaker are divided", data.name, count)
            joined, together = row_groups(manifest, ignore=[*heads, "speaker"])
        if together:
            group_by, groups = f"groups of clips of one {' or '.join(together)}", joined.astype(str).tolist()
            logger.info("%s: clips of one %s stay in one fold", data.name, " or ".join(together))
    tests = _divide(manifest, heads[0], count, groups, seed, data.name, group_by)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, test in tests:
        fold = Fold(name, data)
        path = folder / f"{fold.slug}-seed-{seed}.parquet"
        _write(manifest.with_columns({"split": np.where(test, "test", "train").tolist()}), path, entry.stated)
        options = {"allow_absolute": True} if manifest.allow_absolute else {}
        settings: dict[str, Any] = {"name": str(path), "root": None, "options": options, "heads": list(heads)}
        settings["clip_seconds"] = entry.clip_seconds if data.clip_seconds is None else data.clip_seconds
        settings["eval_clips"] = entry.eval_clips if data.eval_clips is None else data.eval_clips
        made.append(replace(fold, data=replace(data, **settings)))
    if len({fold.slug for fold in made}) < len(made):
        raise DataError(f"{data.name}: values of {group_by!r} are alike but for signs that file names cannot hold")
    return made


def _labelled(manifest: Manifest, head: str) -> np.ndarray:
    labels = manifest.labels(head)
    return (labels if labels.ndim == 1 else labels.max(axis=1, initial=-1)) >= 0


def _groups(manifest: Manifest, group_by: str, name: str) -> list[str | None]:
    """The value of the column or label head ``group_by`` for every row, None where it has none."""
    if group_by in manifest.table.column_names:
        groups = [None if value in (None, "") else str(value) for value in manifest.column(group_by)]
    elif group_by in manifest.heads and manifest.labels(group_by).ndim == 1:
        classes = manifest.heads[group_by]
        groups = [classes[label] if label >= 0 else None for label in manifest.labels(group_by)]
    else:
        groups = []
    if len(set(groups) - {None}) >= 2:
        return groups
    own = [name for name in manifest.table.column_names if name not in COLUMNS and not name.startswith(LABEL_PREFIX)]
    if group_by == "fold":
        what = "no official folds"
    elif not groups:
        what = f"neither a column nor a single-label head {group_by!r}"
    else:
        what = f"fewer than two values of {group_by!r}"
    raise DataError(
        f"{name} has {what}; give --folds 5 for random folds, --folds OPTION=VALUES for an option of the data set, or "
        f"--group-by with one of {', '.join([*own, *manifest.heads])}"
    )


def _divide(
    manifest: Manifest,
    head: str,
    count: int | None,
    groups: Sequence[str | None] | None,
    seed: int,
    name: str,
    group_by: str | None,
) -> list[tuple[str, np.ndarray]]:
    """(name, mask of the test rows (N,)) of every fold; the masks divide the rows."""
    if groups is not None and count is None:
        values = np.array(groups)
        return [(f"{group_by} {value}", values == value) for value in sorted(set(map(str, groups)), key=_natural)]
    assert count is not None
    most = len(manifest) if groups is None else len(set(groups))
    if not 2 <= count <= most:
        raise ValueError(f"folds must lie in 2..{most}: {name} has {most} {'clips' if groups is None else group_by}")
    kinds = strata(len(manifest), manifest.label_pairs(head))
    sizes = np.bincount(kinds - kinds.min())
    if 0 < (rarest := sizes[sizes > 0].min()) < count:
        logger.warning("%s: a class of %r has %d clips: not every fold has one of it", name, head, rarest)
    if sizes.max() < count:
        raise DataError(f"{name}: no class of {head!r} has as many clips as there are folds ({count}); give fewer")
    splitter = (StratifiedKFold if groups is None else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)
    out = []
    for number, (_, test) in enumerate(splitter.split(kinds, kinds, groups), 1):
        mask = np.zeros(len(kinds), dtype=bool)
        mask[test] = True
        out.append((f"part {number} of {count}", mask))
    return out


def _natural(value: str) -> tuple[int, str]:
    """Sorts 10 behind 9, and numbers before words."""
    return (int(value), "") if value.isdecimal() else (1 << 62, value)


def _write(manifest: Manifest, path: Path, protocol: Mapping[str, Any]) -> None:
    """Saves a fold; one that is there already may have gained or lost readable files, but must test the same clips.

    Raises:
        DataError: it tests others: with it, results of an earlier call would be of folds that overlap.
    """
    if path.is_file():
        before = Manifest.load(path, allow_absolute=manifest.allow_absolute)
        if any(before.column(name) != manifest.column(name) for name in ("clip_id", "split")):
            raise DataError(f"{path} holds a fold of other clips: choose another --output")
    manifest.save(path, protocol)
