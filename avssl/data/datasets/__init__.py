"""Data sets: one file each, registered by name, from a folder on disk to the rows of a manifest.

A new data set is one file in this folder with a function ``(root, *, option=default, ...) -> Manifest`` under
``@register_dataset(name, ...)``, which also states its protocol: how long a clip is, how many are scored, and by which
head. A builder only lists clips; what it lists is scanned once by :func:`avssl.data.catalog.open_data`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.errors import printable
from avssl.plugins import Registry

Builder = Callable[..., Manifest]
# What can be averaged over the clips of an item.
AVERAGES = ("probabilities", "logits")


@dataclass(frozen=True)
class Dataset:
    """A registered builder with its protocol; the fields are the arguments of :func:`register_dataset`."""

    name: str
    build: Builder
    clip_seconds: float | None
    eval_clips: int
    head: str | None
    preset: Mapping[str, Any]
    average: str
    protocol: str
    needs_root: bool

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults under this name."""
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters} | dict(self.preset)


def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


DATASETS = Registry[Dataset]("data", "data set", error=DataError, load=_import_all)


def register_dataset(
    name: str,
    *,
    clip_seconds: float | None,
    eval_clips: int,
    head: str | None,
    options: Mapping[str, Any] | None = None,
    average: str = "probabilities",
    protocol: str = "",
    needs_root: bool = True,
) -> Callable[[Builder], Builder]:
    """Registers ``builder(root, **options) -> Manifest`` under ``name``, with the protocol that its numbers go by.

    A builder may be registered under several names, one decorator each.

    Args:
        name: What ``--data`` takes.
        clip_seconds: Length of a clip in seconds; None where it depends on what a user brings (a folder, a list).
        eval_clips: Clips of an item in evaluation: 1 is the centre, N are N uniform ones.
        head: Label head to train and evaluate on; None: all of the manifest's.
        options: Options that have another default under this name than in the builder.
        average: What is averaged over several clips of an item: "probabilities" (softmax, or sigmoid of several labels)
            or "logits".
        protocol: Work whose published numbers are scored in this way; none where the protocol is ours.
        needs_root: False where the data set makes or finds its own folder.

    Raises:
        ValueError: the name is taken, or the protocol cannot be one.
    """
    if clip_seconds is not None and not clip_seconds > 0:
        raise ValueError(f"data set {name!r}: clip_seconds must be positive or None, got {clip_seconds}")
    if eval_clips < 1:
        raise ValueError(f"data set {name!r}: eval_clips must be at least 1, got {eval_clips}")

    if average not in AVERAGES:
        raise ValueError(f"data set {name!r}: average must be {' or '.join(AVERAGES)}, got {average!r}")

    def register(builder: Builder) -> Builder:
        preset = dict(options or {})
        dataset = Dataset(name, builder, clip_seconds, eval_clips, head, preset, average, protocol, needs_root)
        unknown = set(dataset.options) - set(inspect.signature(builder).parameters)
        if unknown:
            raise ValueError(f"data set {name!r}: its builder has no option {', '.join(sorted(unknown))}")
        DATASETS.add(name, dataset, builder)
        return builder

    return register


def available() -> list[str]:
    """Names of all registered data sets."""
    return sorted(DATASETS.names())


def get_dataset(name: str) -> Dataset:
    """The registered data set.

    Raises:
        DataError: there is none of that name; the message gives the nearest.
    """
    return DATASETS.get(name)


def build_manifest(name: str, root: str | Path | None = None, **options: Any) -> Manifest:
    """The unscanned manifest of a data set.

    Args:
        name: A registered name, see :func:`available`.
        root: The data set's folder.
        **options: The builder's keyword arguments.

    Raises:
        DataError: unknown name or option, no such folder, or files that are not as the data set's authors laid them
            out.
    """
    dataset = get_dataset(name)
    for option in options:
        if option not in dataset.options:
            known = ", ".join(dataset.options) or "none"
            raise DataError(
                f"data set {name!r} has no option {option!r}{nearest(option, dataset.options)}; its options: {known}"
            )
    if root is not None:
        root = Path(root).expanduser()
        if printable(str(root)) != str(root):
            raise DataError(f"{printable(str(root))}: the folder's name is not UTF-8; rename it")
    if dataset.needs_root:
        if root is None:
            raise DataError(f"data set {name!r} needs the folder of its media: give --data.root")
        if not root.is_dir():
            raise DataError(f"data set {name!r}: no folder {root}; give its place with --data.root")
    try:
        return dataset.build(root, **{**dataset.preset, **options})
    except TypeError as error:  # an option of a wrong type, such as a word for a number
        raise DataError(f"data set {name!r}: {error} (options {options})") from error


def nearest(word: str, known: Any) -> str:
    """The end of an error about an unknown ``word``: the nearest known one, or nothing where none is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
