"""Data by name: a known data set, a data YAML, a folder, a CSV or a saved manifest -> a manifest, scanned once."""

import glob
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml

from avssl.data.datasets import AVERAGES, available, build_manifest, get_dataset, nearest
from avssl.data.datasets.layout import MEDIA
from avssl.data.failures import DataError
from avssl.data.file_stats import file_stats
from avssl.data.manifest import METADATA_KEY, Manifest
from avssl.data.manifest_checks import ManifestError
from avssl.data.scan import SCAN_VERSION, scan, scan_rules
from avssl.data.shards.index import entry_of, is_cache
from avssl.locks import hold
from avssl.urls import keep_back, reveal

logger = logging.getLogger(__name__)

# Of a folder or a list, for which nobody has stated a length.
OWN_CLIP_SECONDS = 4.0
# A start with more clips than this that takes longer than so many seconds says why; with fewer, it made the demo set.
_MANY_CLIPS, _LONG_START = 50_000, 20.0


_PROTOCOL = ("clip_seconds", "eval_clips", "head", "eval_average", "protocol")


@dataclass(frozen=True)
class Entry:
    """Some data and the protocol that its numbers go by; a data YAML's keys are these fields, ``name`` apart.

    Args:
        name: A known name, or that of the file or folder without its ending.
        dataset: Registered data set that builds the manifest.
        root: Folder of the media; environment variables are expanded, a relative one is relative to the YAML.
        options: Options of the data set.
        clip_seconds: Length of a clip in seconds; None where the data do not state any: see :meth:`seconds`.
        eval_clips: Clips per item in evaluation.
        head: Label head to train and evaluate on; None: all of the manifest's.
        eval_average: What is averaged over several clips: probabilities or logits.
        protocol: Work whose published numbers are scored in this way; none where that is not so.
    """

    name: str
    dataset: str
    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    clip_seconds: float | None = None
    eval_clips: int = 1
    head: str | None = None
    eval_average: str = "probabilities"
    protocol: str = ""

    @property
    def stated(self) -> dict[str, Any]:
        """The protocol as keys of a data YAML, which a manifest and a cache of these data keep."""
        return {key: getattr(self, key) for key in _PROTOCOL}

    def seconds(self, stated: float | None = None, option: str = "data.clip_seconds") -> float:
        """Length of a clip in seconds: as ``stated`` by ``option``, else the data's own, else 4 s, which is logged."""
        if stated is not None:
            if self.clip_seconds not in (None, stated):
                logger.info("data %s: clips of %g s, as set; its own are %g s", self.name, stated, self.clip_seconds)
            return stated
        if self.clip_seconds is not None:
            return self.clip_seconds
        logger.warning(
            "data %s: no length of a clip is stated: %g s are taken; set %s to that of your sounds",
            self.name, OWN_CLIP_SECONDS, option,
        )  # fmt: skip
        return OWN_CLIP_SECONDS


def names() -> list[str]:
    """Names of the known data sets, those with a protocol of their own."""
    return [name for name in available() if get_dataset(name).clip_seconds is not None]


def find_entry(name: str) -> Entry:
    """The entry of a known name, a path to a YAML, a .csv, a .parquet or a folder, or of a cache.

    A manifest and a cache have the clips and the head that the data had of which a tool made them.

    Raises:
        DataError: none of these; or the YAML is not valid, naming file, key and the nearest valid key.
    """
    name = keep_back(name)
    path = Path(name).expanduser()
    if name in names():
        return Entry(name, name, **_protocol(name))
    if path.suffix in (".yaml", ".yml"):
        return read_entry(path)
    if is_cache(name):
        return Entry(path.name, "cache", options={"location": name}, **entry_of(name))
    if path.is_dir():
        return Entry(path.resolve().name, "folder", path.resolve())
    if path.is_file():
        if path.suffix.lower() in MEDIA:
            raise DataError(f"{name}: is one media file: give its folder, or a .csv that lists it")
        entry = Entry(path.stem, "csv", path.resolve().parent, {"file": str(path.resolve())})
        return replace(entry, **(_metadata(name) or {}).get("entry", {}))
    if name in available():
        return Entry(name, name, **_protocol(name))
    raise DataError(
        f"no data {name!r}{nearest(name, names())}: give one of {', '.join(names())}, a data YAML, a folder of media, "
        "a .csv file, a manifest (.parquet) or a cache (a folder or a URL that avssl cache wrote)"
    )


def stated_seconds(name: str) -> float | None:
    """Length of a clip that some data state; None where they state none, or are not there to say."""
    try:
        return find_entry(name).clip_seconds
    except DataError as error:
        logger.debug("%s: clip length unknown: %s", name, error)
        return None


def _protocol(dataset: str) -> dict[str, Any]:
    """What a registered data set states of its clips, as fields of an entry."""
    known = get_dataset(dataset)
    values = {"clip_seconds": known.clip_seconds, "eval_clips": known.eval_clips, "head": known.head}
    return values | {"eval_average": known.average, "protocol": known.protocol}


def read_entry(file: Path) -> Entry:
    """A data YAML, checked strictly; what it does not give is as its data set states it.

    An empty ``head`` takes all heads of the manifest.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no file {file}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}: must hold keys and values, with 'dataset' at least")
    keys = [item.name for item in fields(Entry) if item.name != "name"]
    for key in values:
        if key not in keys:
            raise DataError(f"{file}: unknown key {key!r}{nearest(str(key), keys)}; the keys are {', '.join(keys)}")
    kinds: dict[str, tuple[type, ...]] = {"dataset": (str,), "root": (str,), "options": (dict,), "head": (str,)}
    kinds |= {"eval_average": (str,), "protocol": (str,)}
    for key, kind in (kinds | {"clip_seconds": (int, float), "eval_clips": (int,)}).items():
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise DataError(f"{file}: key {key!r} must be {' or '.join(k.__name__ for k in kind)}, got {values[key]!r}")
    if not values.get("dataset"):
        raise DataError(f"{file}: key 'dataset' is missing: give one of {', '.join(available())}")
    for key in ("clip_seconds", "eval_clips"):
        if values.get(key) is not None and not values[key] > 0:
            raise DataError(f"{file}: key {key!r} must be positive, got {values[key]}")
    if values.get("eval_average") not in (None, *AVERAGES):
        raise DataError(f"{file}: key 'eval_average' must be {' or '.join(AVERAGES)}, got {values['eval_average']!r}")
    given = {key: value for key, value in values.items() if value is not None or key == "head"}
    protocol = _protocol(given["dataset"])
    if "root" in given:
        given["root"] = file.parent / Path(os.path.expandvars(given["root"])).expanduser()
    place = given.get("options", {}).get("location") or given.get("root")
    if given["dataset"] == "cache" and place:
        protocol |= entry_of(str(place))
    of_protocol = ("clip_seconds", "eval_clips", "eval_average")
    if any(key in given and given[key] != protocol[key] for key in of_protocol if key in protocol):
        protocol["protocol"] = ""
    return Entry(file.stem, **{**protocol, **given})


def open_data(
    name: str,
    root: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """The scanned manifest of some data; the scan is kept and reused until the data change.

    Args:
        name: See :func:`find_entry`.
        root: Folder of the media; default: the YAML's, else ``$AVSSL_DATA/NAME``.
        options: Options of the data set, over the YAML's.
        cache_dir: Where scans are kept; default: ``$AVSSL_CACHE/manifests``, else ``~/.cache/avssl/manifests``.
        workers, progress: See :func:`avssl.data.scan.scan`.

    Returns:
        All rows, unusable ones with their reason in the column "error"; ``Manifest.usable`` drops those.

    Raises:
        DataError: no such data or root, a wrong option, files that are not as expected, or no usable clip at all.
    """
    began = time.monotonic()
    built, key = list_data(name, root, options)
    if built.scanned:  # a saved manifest
        return check_usable(built, name)
    if is_manifest(name):
        logger.info(
            "%s does not say when streams begin and end: its files are scanned; prepare it anew to keep that", name
        )
    cached = scan_cache(built, key, cache_dir, progress)
    if (took := time.monotonic() - began) > _LONG_START and len(built) > _MANY_CLIPS:
        logger.info(
            "%s: listing %d clips and comparing their files took %.0f s; a manifest that avssl prepare wrote "
            "(--data %s.parquet) opens without", name, len(built), took, Path(name).stem,
        )  # fmt: skip
    if (kept := _kept_scan(cached, built)) is not None:
        return check_usable(kept, name)
    # By the data's name alone: what a killed scan knows of a file stays true when other files have changed since.
    journal = cached.parent / f"{key}-{SCAN_VERSION}.scan"
    with hold(journal, "scan", wait=True):
        if (kept := _kept_scan(cached, built)) is not None:  # another process has scanned the same
            return check_usable(kept, name)
        logger.info("scanning %d clips of %s under %s (once; kept in %s)", len(built), name, built.root, cached.parent)
        scanned = scan(built, workers=workers, progress=progress, journal=journal)
        keep_scan(scanned, key, cached)
    return check_usable(scanned, name)


def scan_cache(built: Manifest, key: str, cache_dir: str | Path | None = None, progress: bool = True) -> Path:
    """Where the scan of a listed manifest is kept, there or not; its name changes with the rows and the files.

    Args:
        built, key: As :func:`list_data` gives them.
        cache_dir, progress: As for :func:`open_data`.
    """
    stats = file_stats(built.root, sorted(set(built.column("path"))), progress)
    folder = Path(cache_dir) if cache_dir else cache_folder() / "manifests"
    return folder / f"{key}-{_hash([scan_rules(None), built.digest, stats])}.parquet"


def _kept_scan(cached: Path, built: Manifest) -> Manifest | None:
    """An earlier scan of ``built``; None where there is none that is whole."""
    if not cached.is_file():
        return None
    try:
        return Manifest.load(cached, built.root, allow_absolute=built.allow_absolute)
    except ManifestError as error:
        cached.unlink(missing_ok=True)
        logger.warning("%s; its files are scanned again", error)
        return None


def keep_scan(scanned: Manifest, key: str, cached: Path) -> None:
    """Saves a scan at its :func:`scan_cache`, and removes those of the same data that are out of date."""
    for stale in cached.parent.glob(f"{glob.escape(key)}-*.parquet"):
        stale.unlink(missing_ok=True)
    scanned.save(cached)


def list_data(
    name: str, root: str | Path | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Manifest, str]:
    """The manifest of some data before any scan, and a file name that tells it from other roots and options.

    Arguments and errors as for :func:`open_data`.
    """
    if is_manifest(name):
        given = dict(options or {})
        allowed = given.pop("allow_absolute", False)
        if given:
            raise DataError(f"{name}: a saved manifest takes no options but allow_absolute, got {', '.join(given)}")
        built = Manifest.load(Path(name).expanduser(), root, allow_absolute=allowed is True)
        return built, f"{Path(name).stem}-{_hash([str(built.root)])}"
    entry = find_entry(name)
    options = keep_back({**entry.options, **(options or {})})
    built = build_manifest(entry.dataset, _root(entry, root), **reveal(options))
    return built, f"{entry.name}-{_hash([str(built.root), options])}"


def check_usable(manifest: Manifest, name: str) -> Manifest:
    """The manifest; logs how much of it can be used, and why the rest cannot.

    Raises:
        DataError: none of it can.
    """
    coverage = manifest.coverage()
    counts = ", ".join(f"{reason} x{count}" for reason, count in coverage["reasons"].items())
    if not coverage["usable"]:
        first = manifest.row(0).path if len(manifest) else "none"
        raise DataError(f"{name}: none of {len(manifest)} clips can be used: {counts or 'no row'}; the first: {first}")
    if counts:
        logger.warning("%s: %d of %d clips can be used: %s", name, coverage["usable"], len(manifest), counts)
    return manifest


def cache_folder() -> Path:
    """``$AVSSL_CACHE``, else ``~/.cache/avssl``."""
    return Path(os.environ.get("AVSSL_CACHE") or "~/.cache/avssl").expanduser()


def _root(entry: Entry, given: str | Path | None) -> Path | None:
    shelf = os.environ.get("AVSSL_DATA")
    shelved = Path(shelf).expanduser() / entry.name if shelf else None
    root = given or entry.root or (shelved if shelved and shelved.is_dir() else None)
    if root is None and get_dataset(entry.dataset).needs_root:
        also = f" ({shelved} is not there)" if shelved else ""
        folder = entry.name if Path(entry.name).is_dir() else "FOLDER"
        raise DataError(
            f"data {entry.name!r} needs the folder of its media: give --data.root {folder}, root in its YAML, or set "
            f"AVSSL_DATA to a folder that holds {entry.name}/{also}"
        )
    if root is None and entry.name in names() and Path(entry.name).is_dir():
        logger.warning("data %s: the known set, not the folder of that name, which is ./%s", entry.name, entry.name)
    return None if root is None else Path(root).expanduser().resolve()


def is_manifest(name: str) -> bool:
    """Whether ``name`` is a file that :meth:`Manifest.save` wrote."""
    return _metadata(name) is not None


def _metadata(name: str) -> dict[str, Any] | None:
    """What :meth:`Manifest.save` wrote beside the rows; None of any other file."""
    path = Path(name).expanduser()
    if path.suffix != ".parquet" or not path.is_file():
        return None
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: not a Parquet file: {error}") from error
    return json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
