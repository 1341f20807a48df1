"""From a data config to the rows of each split: what is usable, what is held out, and what is told of it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning_fabric import Fabric

from avssl.bounds import check_bounds
from avssl.data.catalog import OWN_CLIP_SECONDS, Entry, find_entry, open_data
from avssl.data.clips import Modality
from avssl.data.failures import DataError
from avssl.data.loaders import ClipProtocol
from avssl.data.manifest import Manifest
from avssl.data.manifest_checks import some
from avssl.data.media.probe import CANCELS
from avssl.data.scan import cut_short, shortfall, shortfall_words, warning_words
from avssl.data.settings import DataConfig
from avssl.data.shards.index import check_settings
from avssl.data.strata import held_out as draw_held_out
from avssl.data.strata import learnable_heads, row_groups, training_share
from avssl.limits import set_limits

logger = logging.getLogger(__name__)

# Of data that state no length of a clip: it is that of this share of their clips, or more; at least so many seconds.
_NEARLY_ALL, _LEAST_SECONDS = 0.95, 1.0


@dataclass(frozen=True)
class HoldOut:
    """Rows of the training split that were set aside for validation or the test.

    Attributes:
        clip_ids: Which.
        fraction: Share that was asked for.
        seed: Seed of the draw.
        of: Rows that they were taken from.
        together: Columns whose equal values stayed on one side.
    """

    clip_ids: list[str]
    fraction: float
    seed: int
    of: int
    together: list[str]

    def summary(self) -> dict[str, Any]:
        """For result.json: everything but the list of clips."""
        values = {"clips": len(self.clip_ids), "of": self.of, "fraction": self.fraction, "seed": self.seed}
        return values | {"kept_together": self.together}

    def __str__(self) -> str:
        aside = f", clips of one {' or '.join(self.together)} on one side" if self.together else ""
        return f"{len(self.clip_ids)} of {self.of} training clips (seed {self.seed}{aside})"


@dataclass
class Splits:
    """The usable rows of each split, and what was left out.

    Attributes:
        train: Rows to train on.
        val: Rows to validate on while training; None without.
        test: Rows of the final evaluation; None where the data has none.
        labels: Class names of each head to train.
        protocol: Length and number of clips.
        digest: Hash of the whole manifest.
        coverage: Expected and usable rows of each split, with the reasons of those left out.
        held_out: What "val" and "test" are where they were taken from the training split.
    """

    train: Manifest
    val: Manifest | None
    test: Manifest | None
    labels: dict[str, list[str]]
    protocol: ClipProtocol
    digest: str
    coverage: dict[str, dict[str, Any]] = field(default_factory=dict)
    held_out: dict[str, HoldOut] = field(default_factory=dict)

    @property
    def labelled_test(self) -> Manifest | None:
        """What a trained head is judged on: "test", or "val" where test has no labels (a challenge's) or is absent."""
        for rows in (self.test, self.val):
            if rows is not None and any(rows.labelled(head).any() for head in self.labels):
                return rows
        return None

    @property
    def multilabel(self) -> list[str]:
        """Heads to train whose clips have several labels."""
        return [head for head in self.labels if head in self.train.multilabel]


def open_splits(
    config: DataConfig,
    *,
    modalities: Sequence[Modality],
    labelled: bool,
    seed: int = 0,
    fabric: Fabric | None = None,
    need_train: bool = True,
    held_out: Mapping[str, HoldOut] | None = None,
) -> Splits:
    """Opens the data and divides it.

    Pretraining (``labelled`` False) trains on the split "pretrain" where there is one, else on "train"; fine-tuning
    trains on "train". Where the data has neither a split "test" nor "val", fine-tuning holds out ``test_fraction`` of
    its training rows as "test"; without a split "val", ``val_fraction`` of what is left is held out as "val"; of the
    rest, ``train_fraction`` is kept.

    Args:
        config: Data config.
        modalities: What a usable row has.
        labelled: Whether training needs labels.
        seed: Seed of what is held out as "val"; the "test" is the same for every seed.
        fabric: Of a run of several processes.
        need_train: False takes data that are there to be evaluated only; the training split may then be empty.
        held_out: What an earlier run held out, to be held out again; rows that it did not have are training rows.
            Nothing of other data, and of a split that the data have by now.

    Raises:
        DataError: when the data has no usable row to train on, not the head asked for, or nothing to hold out.
        SettingsError: a setting cannot have its value.
    """
    check_bounds(config, "data.")
    set_limits(config)
    if fabric is not None and not fabric.is_global_zero:
        fabric.barrier()  # one process builds and scans, the others read its cache
    entry = find_entry(config.name)
    manifest = open_data(config.name, root=config.root, options=config.options)
    check_settings(
        manifest,
        config.frame_size if "video" in modalities else None,
        config.channel if "audio" in modalities else None,
    )
    if fabric is not None and fabric.is_global_zero:
        fabric.barrier()
    protocol = protocol_of(config, entry, modalities)
    coverage: dict[str, dict[str, Any]] = {}

    def usable(split: str) -> Manifest | None:
        rows = manifest.select(split)
        if not len(rows):
            return None
        good, reasons = rows.usable("audio" in modalities, "video" in modalities, protocol.seconds, config.channel)
        coverage[split] = {"expected": len(rows), "usable": len(good), "reasons": dict(reasons)}
        coverage[split] |= _lessened(good, modalities, protocol.seconds, config)
        if reasons:
            missing = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
            logger.warning("%s/%s: %d of %d clips usable (%s)", config.name, split, len(good), len(rows), missing)
        return good if len(good) else None

    train = usable("train") if labelled else usable("pretrain") or usable("train")
    if train is None and need_train:
        raise DataError(_nothing_to_train_on(config, manifest, modalities, protocol.seconds, coverage))
    train = manifest.take([]) if train is None else train
    val, test = usable("val"), usable("test")
    heads = config.heads or ([entry.head] if entry.head else list(manifest.heads))
    unknown = set(heads) - set(manifest.heads)
    if unknown:
        raise DataError(f"data.heads: {config.name} has no head {sorted(unknown)}; it has {sorted(manifest.heads)}")
    labels = {head: manifest.heads[head] for head in heads}
    aside = {
        name: rows
        for name, rows in (held_out or {}).items()
        if not len(manifest.select(name)) and _members(train, rows).any()
    }
    if not aside and len(train):
        aside = _hold_out(config, manifest, train, heads if labelled else [], labelled, seed)
    for name, rows in aside.items():
        mask = _members(train, rows)
        if mask.sum() < len(rows.clip_ids):
            logger.warning("%s: %d of the %d clips held out are there", name, mask.sum(), len(rows.clip_ids))
        logger.info("%s: no split %r: held out %s", config.name, name, rows)
        train, taken = train.select(mask=~mask), train.select(mask=mask)
        val, test = (taken, test) if name == "val" else (val, taken)
    if config.train_fraction != 1 and len(train):
        train = training_share(train, next(iter(heads), None), config.train_fraction, seed)
        coverage[train.column("split")[0]]["share"] = {"fraction": config.train_fraction, "clips": len(train)}
        logger.info("training on %d clips, data.train_fraction %g", len(train), config.train_fraction)
    splits = Splits(train, val, test, labels, protocol, manifest.digest, coverage, aside)
    if labelled and need_train:
        warn_of_classes(splits, config.name)
    return splits


def settle_clip_seconds(config: DataConfig, modalities: Sequence[Modality], trained: float | None = None) -> DataConfig:
    """``config`` with the length of a clip that a training takes, as the run's ``config.yaml`` keeps it.

    It is the one that is set, or else the data's own. Data that state none get that of the checkpoint's training, or
    4 s, and not more than nearly all of their clips have, which the log says.

    Args:
        config: Data config.
        modalities: What is trained on.
        trained: Length of the clips that the checkpoint was trained on.

    Raises:
        DataError, SettingsError: as of :func:`open_splits`.
    """
    check_bounds(config, "data.")
    if config.clip_seconds is not None:
        return config
    if (stated := find_entry(config.name).clip_seconds) is not None:
        return replace(config, clip_seconds=stated)
    set_limits(config)
    most, whose = (OWN_CLIP_SECONDS, "usual") if trained is None else (trained, "the checkpoint's")
    low, high = open_data(config.name, root=config.root, options=config.options).spans(modalities)
    lengths = (high - low)[high > low]
    if len(lengths):
        own = float(np.quantile(lengths, _NEARLY_ALL, method="higher"))
        own = max(math.ceil(100 * own - 1e-6) / 100, _LEAST_SECONDS)
        most, whose = (own, "as long as its own") if own < most else (most, whose)
    logger.warning(
        "data %s: no length of a clip is stated: %g s are taken, %s; set data.clip_seconds to that of your sounds",
        *(config.name, most, whose),
    )
    return replace(config, clip_seconds=most)


def protocol_of(config: DataConfig, entry: Entry, modalities: Sequence[Modality]) -> ClipProtocol:
    """The protocol that the data state, with what is set beside it; it keeps its name, that of a work on sound, only
    where nothing differs and sound is heard."""
    seconds = entry.seconds(config.clip_seconds)
    clips = entry.eval_clips if config.eval_clips is None else config.eval_clips
    average = entry.eval_average if config.eval_average is None else config.eval_average
    same = (seconds, clips) == (entry.clip_seconds, entry.eval_clips) and (clips == 1 or average == entry.eval_average)
    return ClipProtocol(seconds, clips, average, entry.protocol if same and "audio" in modalities else "")


def _nothing_to_train_on(
    config: DataConfig,
    manifest: Manifest,
    modalities: Sequence[Modality],
    seconds: float,
    coverage: Mapping[str, Mapping[str, Any]],
) -> str:
    """Why, and what the clips could be used for instead."""
    told = "; ".join(_none_usable(split, found) for split, found in coverage.items())
    if not told:
        splits = ", ".join(sorted(filter(None, set(manifest.column("split")))))
        return f"data {config.name}: no clip to train on; it has no split train{splits and f', but {splits}'}"
    for modality, words in (("audio", "sound"), ("video", "pictures")):
        rows = manifest.select(mask=np.isin(manifest.column("split"), list(coverage)))
        good, _ = rows.usable(modality == "audio", modality == "video", seconds, config.channel)
        if len(good) and tuple(modalities) != (modality,):
            labels = "" if learnable_heads(manifest) else ", once they are labelled with two classes or more"
            told += f"; avssl finetune --modality {modality} trains on the {len(good)} that have {words}{labels}"
    return f"data {config.name}: {told}"


def _none_usable(split: str, found: Mapping[str, Any]) -> str:
    why = ", ".join(f"{count} x {reason}" for reason, count in found["reasons"].items())
    return f"none of the {found['expected']} clips of split {split!r} is usable: {why}"


def _hold_out(
    config: DataConfig, manifest: Manifest, train: Manifest, heads: Sequence[str], labelled: bool, seed: int
) -> dict[str, HoldOut]:
    """What of ``train`` is set aside for the splits that ``manifest`` has not.

    Raises:
        DataError: it cannot be divided.
    """
    missing = {name for name in ("val", "test") if not len(manifest.select(name))}
    wanted = [("test", config.test_fraction)] if labelled and heads and len(missing) == 2 else []
    wanted += [("val", config.val_fraction)] if "val" in missing else []
    none = np.zeros(0, dtype=np.int64)
    aside: dict[str, HoldOut] = {}
    for name, fraction in wanted:
        if not fraction:
            continue
        pairs = train.label_pairs(heads[0]) if heads else (none, none)
        try:
            groups, together = row_groups(train, ignore=heads)
            drawn_with = 0 if name == "test" else seed  # every run is judged on the same clips
            mask = draw_held_out(groups, pairs, fraction, drawn_with, every_class=name == "test")
            if name == "val" and "speaker" in together and mask.mean() > 3 * fraction:
                what = (100 * mask.mean(), 100 * fraction)
                logger.warning("data.val_fraction: by speaker it would be %.0f %%, not %.0f %%: not by speaker", *what)
                groups, together = row_groups(train, ignore=[*heads, "speaker"])
                mask = draw_held_out(groups, pairs, fraction, seed)
        except ValueError as error:
            raise DataError(
                f"data {config.name}: no split {name!r}, and nothing to hold out as one (data.{name}_fraction "
                f"{fraction:g}): {error}"
            ) from error
        clip_ids = train.select(mask=mask).column("clip_id")
        aside[name] = HoldOut(clip_ids, fraction, drawn_with, len(train), together)
        train = train.select(mask=~mask)
    return aside


def _members(rows: Manifest, aside: HoldOut) -> np.ndarray:
    """(N,) which of ``rows`` are in a hold-out."""
    return pc.is_in(rows.table["clip_id"], pa.array(aside.clip_ids, pa.string())).to_numpy()


def warn_of_classes(splits: Splits, name: str) -> None:
    """Warns of class names that differ in spaces or case only, of a single class, and of classes that only the test
    has.

    Args:
        splits: Labelled ones, with training rows.
        name: Of the data.
    """
    for head, names in splits.labels.items():
        alike: dict[str, list[str]] = {}
        for label in names:
            alike.setdefault(" ".join(label.split()).casefold(), []).append(label)
        for same in alike.values():
            if len(same) > 1:
                told = " and ".join(map(repr, same))
                logger.warning("%s: %r has the classes %s, which are trained as different ones", name, head, told)
        if head not in learnable_heads(splits.train) and splits.train.labelled(head).any():
            logger.warning("%s: %r has training clips of a single class: there is nothing to tell apart", name, head)
        judged = splits.labelled_test
        if judged is None:
            continue
        trained, tested = (set(rows.label_pairs(head)[1].tolist()) for rows in (splits.train, judged))
        if unseen := [names[label] for label in sorted(tested - trained)]:
            logger.warning("%s: %r has test clips but no training clip of %s", name, head, some(unseen))


def check_labelled(splits: Splits, name: str) -> Manifest:
    """The rows that a head trained on ``splits`` is judged on.

    Raises:
        DataError: there is nothing to learn, or nothing to judge it on.
    """
    if not splits.labels:
        raise DataError(
            f"data {name}: no labels to fine-tune on: put the files into a folder of each class, or give a .csv with a "
            "column label"
        )
    if not any(splits.train.labelled(head).any() for head in splits.labels):
        raise DataError(f"data {name}: no training clip has a label of {some(list(splits.labels))}")
    rows = splits.labelled_test
    if rows is None:
        for split in ("test", "val"):
            if (found := splits.coverage.get(split)) and not found["usable"]:
                raise DataError(f"data {name}: {_none_usable(split, found)}")
        raise DataError(
            f"data {name}: no labelled clip to evaluate on; add a split test or val, or give --data.test_fraction 0.2 "
            "(or, beside a split test without labels, --data.val_fraction 0.2)"
        )
    if not set(learnable_heads(splits.train)) & splits.labels.keys():
        classes = [
            f"{splits.labels[head][label]!r} of {head!r}"
            for head in splits.labels
            for label in np.unique(splits.train.label_pairs(head)[1]).tolist()
        ]
        raise DataError(
            f"data {name}: all training clips are of one class, {', '.join(classes)}: there is nothing to tell apart; "
            "add clips of another class, in a folder of its own or with another label"
        )
    return rows


def _lessened(
    rows: Manifest, modalities: Sequence[Modality], seconds: float, config: DataConfig
) -> dict[str, int | dict[str, int]]:
    """Usable rows that give less than they name, or than a clip has, which the log says, too, by what they lack."""
    name = f"{config.name}/{rows.table['split'][0].as_py()}" if len(rows) else config.name
    short = int(cut_short(rows, modalities).sum())
    padded = int((rows.shares(modalities, seconds) < 0.5).sum())
    if short:
        logger.warning("%s: %d segments reach beyond their %s and are cut short", name, short, " or ".join(modalities))
    if padded:
        logger.warning(
            "%s: of %d clips of %g s more than half is padding, since the streams cover only a part of them",
            *(name, padded, seconds),
        )
    shorter = int((shortfall(rows, modalities, seconds) > 0).sum())
    if shorter:
        level = logging.WARNING if 2 * shorter > len(rows) else logging.INFO
        logger.log(level, "%s: %s", name, shortfall_words(rows, modalities, seconds))
    heard = "audio" in modalities and config.channel == "mean"
    warnings = {reason: count for reason, count in rows.warnings.items() if reason != CANCELS or heard}
    for reason, count in warnings.items():
        logger.warning("%s: %d clips: %s", name, count, warning_words(reason))
    return {"cut_short": short, "mostly_padding": padded, "shorter": shorter, "warnings": warnings}
