"""Makes a cache: samples in many processes, shards in order, continued where it stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avssl.data.failures import DataError
from avssl.data.file_stats import CHANGED, times_hold
from avssl.data.manifest import Manifest
from avssl.data.manifest_checks import CACHE_SOURCE, FILE_COLUMNS
from avssl.data.media.pool import available_cores, run_all
from avssl.data.shards.encode import EncodingResult, Job, Settings, write_sample
from avssl.data.shards.index import ABOUT, FORMAT, INDEX, about_of
from avssl.data.shards.store import END, Address, Store
from avssl.files import DamagedError, naming, seal, unseal
from avssl.locks import hold
from avssl.progress import Meter


@dataclass(frozen=True)
class Span:
    """A stretch of a file, and the rows of the manifest that name it."""

    path: str
    start: float
    end: float
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A tar to write: its name, and the spans of its samples by their keys."""

    name: str
    spans: dict[str, Span]

    @property
    def record(self) -> str:
        """The file that tells what the finished tar holds; there is none before."""
        return self.name.removesuffix(".tar") + ".json"


def plan(manifest: Manifest, samples_per_shard: int) -> list[Shard]:
    """The shards of a scanned manifest: the same rows give the same ones."""
    spans: dict[tuple[str, str, float, float], list[int]] = {}
    reasons = manifest.reasons()
    lows, highs = (bounds.tolist() for bounds in manifest.spans(()))
    columns = zip(manifest.column("split"), manifest.column("path"), lows, highs, strict=True)
    for row, (split, path, low, high) in enumerate(columns):
        if not reasons[row] and high > low:
            spans.setdefault((split, path, low, high), []).append(row)
    shards: list[Shard] = []
    for split in sorted({key[0] for key in spans}):
        mine = [Span(*key[1:], tuple(rows)) for key, rows in spans.items() if key[0] == split]
        order = np.random.default_rng(0).permutation(len(mine))
        for number, first in enumerate(range(0, len(mine), samples_per_shard)):
            chosen = order[first : first + samples_per_shard]
            shards.append(
                Shard(
                    f"{split or 'clips'}-{number:06d}.tar",
                    {f"{first + k:09d}": mine[index] for k, index in enumerate(chosen)},
                )
            )
    return shards


logger = logging.getLogger(__name__)

# Seconds for one sample, beyond which its decoder is taken to hang.
_TIMEOUT = 1800.0
_PARTS = ".parts"
# Of a record, whose "sha256" is that of its shard.
_SEAL = "record_sha256"
# Samples whose jobs are listed at a time: those of millions would take gigabytes.
_AT_A_TIME = 16384


@dataclass
class Report:
    """What became of the rows.

    Attributes:
        samples: In the shards.
        rows: Of the manifest, usable or not.
        kept: Shards that an earlier run had finished.
        shards: All.
        bytes: Of all shards.
        failures: Path -> why it is not in the cache, or which of its streams is not.
        unusable: Rows that the scan had found unusable, by reason.
    """

    samples: int = 0
    rows: int = 0
    kept: int = 0
    shards: int = 0
    bytes: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> Counter[str]:
        """Failures by reason, without what is particular to a file."""
        return Counter(reason.split(" (")[0] for reason in self.failures.values())


def write_cache(
    manifest: Manifest,
    output: str,
    settings: Settings,
    *,
    entry: Mapping[str, Any] | None = None,
    name: str = "",
    samples_per_shard: int = 128,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Caches every usable row of a scanned manifest in ``output``; a finished cache is left as it is.

    A row is a sample of its own, unless another one of its split names the same span of the same file. Samples come in
    an order that is shuffled once, within each split, so that any stretch of a shard is a mixture. The bytes of the
    shards do not depend on workers or interruptions.

    Args:
        manifest: Scanned.
        output: A folder, or a URL that fsspec can write to.
        settings: How samples are made.
        entry: ``clip_seconds``, ``eval_clips`` and ``head`` of the data, which `find_entry` will give of the cache.
        name: Of the data, for ``cache.json``.
        samples_per_shard: Samples of a tar.
        workers: Processes; None is one for each core, 0 works in this one.
        progress: Show the rate and the time left.

    Raises:
        DataError: ``output`` holds a cache of other data or settings, or nothing could be cached.
        HeldError: another process is writing to ``output``.
        OSError: the disk is full, or does not give back what was written to it.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard: must be at least 1, got {samples_per_shard}")
    if not output:
        raise ValueError("output: must name a folder or a URL")
    store = Store(output)
    # One at a time; of a cache at a URL, of those that share this machine's folder for parts.
    with hold(output if store.local is not None else _parts_path(store), "cache"):
        return _write(manifest, store, settings, entry or {}, name, samples_per_shard, workers, progress)


def _write(
    manifest: Manifest,
    store: Store,
    settings: Settings,
    entry: Mapping[str, Any],
    name: str,
    samples_per_shard: int,
    workers: int | None,
    progress: bool,
) -> Report:
    about = {
        "format": FORMAT,
        "complete": False,
        "data": name,
        "manifest": manifest.digest,
        "media": _sizes(manifest),
        "settings": json.loads(json.dumps(asdict(settings))) | {"samples_per_shard": samples_per_shard},
    }
    _begin(store, about)
    shards = plan(manifest, samples_per_shard)
    parts = _parts_folder(store)
    report = Report(rows=len(manifest), shards=len(shards), unusable=Counter(filter(None, manifest.reasons())))
    done: dict[str, dict[str, Any]] = {}
    todo: list[Shard] = []
    failed: list[str] = []
    for shard in shards:
        record = _finished(store, shard)
        if record is None:
            todo.append(shard)
        else:
            done[shard.name] = record
    report.kept = len(done)
    total = sum(len(shard.spans) for shard in shards)
    before = total - sum(len(shard.spans) for shard in todo)
    with Meter("caching", total=total, initial=before, unit="sample", shown=progress) as meter:
        step = max(1, _AT_A_TIME // samples_per_shard)
        for first in range(0, len(todo), step):
            for shard, made in _made(manifest, todo[first : first + step], settings, parts, workers, meter, failed):
                _check_there(store, {})
                done[shard.name] = finish_shard(store, shard, made, parts)
    shutil.rmtree(parts, ignore_errors=True)
    _tell(report, shards, done)
    if not report.samples:
        path, why = next(iter(report.failures.items()), ("none", "no usable clip"))
        raise DataError(f"{name}: nothing could be cached; the first: {path}: {why}")
    _check_there(store, done)
    write_index(manifest, store, shards, done, entry)
    listed = {shard.name: {key: done[shard.name][key] for key in ("sha256", "bytes", "samples")} for shard in shards}
    counts: dict[str, Any] = {"rows": report.rows, "samples": report.samples, "bytes": report.bytes}
    counts |= {"reasons": dict(report.reasons.most_common()), "unusable": dict(report.unusable.most_common())}
    _check_there(store, done)
    _write_about(store, about | {"complete": True, **counts, "shards": listed})
    _check_there(store, done)
    return report


def _check_there(store: Store, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises DataError where what has been written is not there any more, as when somebody deletes the folder."""
    if store.size(ABOUT) is None:
        raise DataError(f"{store.location}: was deleted while the cache was made; run this again")
    for name, record in done.items():
        if record["samples"] and store.size(name) != record["bytes"]:
            raise DataError(f"{store.location}/{name}: has changed since it was written, or is gone; run this again")


def _begin(store: Store, about: dict[str, Any]) -> None:
    """Claims the place for this cache, or continues it."""
    if store.local is not None:
        store.local.mkdir(parents=True, exist_ok=True)
    if store.size(ABOUT) is None:
        # What was in hand when somebody deleted the folder may have come after that.
        if store.local is not None and any(path.name not in (_PARTS, INDEX) for path in store.local.iterdir()):
            raise DataError(f"{store.location}: holds other files; choose an empty or a new folder for --output")
        _write_about(store, about)
        return
    there = about_of(store)
    kinds = (("manifest", "other data"), ("media", "other files of the same data"), ("settings", "other settings"))
    for key, what in kinds:
        if there.get(key, about[key]) != about[key]:  # earlier versions did not write "media"
            raise DataError(
                f"{store.location}: holds a cache of {what} ({there[key]}, not {about[key]}); choose another --output"
            )


def _write_about(store: Store, about: Mapping[str, Any]) -> None:
    store.write(ABOUT, json.dumps(seal(about), indent=2).encode())


def _sizes(manifest: Manifest) -> str:
    """Hash of the sizes of all files: one that runs as long as the one before it is the same to the digest."""
    return hashlib.sha256(json.dumps(manifest.column("file_bytes")).encode()).hexdigest()[:16]


def _parts_folder(store: Store) -> Path:
    """Where samples wait for their shard."""
    folder = _parts_path(store)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp*"):
        leftover.unlink(missing_ok=True)
    return folder


def _parts_path(store: Store) -> Path:
    if store.local is not None:
        return store.local / _PARTS
    root = Path(os.environ.get("AVSSL_CACHE") or "~/.cache/avssl").expanduser()
    return root / "shards" / f"{hashlib.sha256(store.location.encode()).hexdigest()[:12]}{_PARTS}"


def _finished(store: Store, shard: Shard) -> dict[str, Any] | None:
    """The record of a shard that an earlier run finished, if it still is as long as it was."""
    try:
        record = unseal(store.read(shard.record), f"{store.location}/{shard.record}", "making it again", _SEAL)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None
    if store.size(shard.name) != record["bytes"] and record["samples"]:
        logger.warning("%s/%s is not as it was written: making it again", store.location, shard.name)
        return None
    return record


def _made(
    manifest: Manifest,
    shards: list[Shard],
    settings: Settings,
    parts: Path,
    workers: int | None,
    meter: Meter,
    failed: list[str],
) -> Iterator[tuple[Shard, dict[str, EncodingResult]]]:
    """Each shard with its samples, as soon as the last of them is made."""
    home: dict[str, Shard] = {}
    waiting: dict[str, dict[str, EncodingResult]] = {}
    jobs: list[Job] = []
    times = times_hold(manifest)
    for shard in shards:
        waiting[shard.name] = {}
        for key, span in shard.spans.items():
            part = str(parts / f"{shard.name.removesuffix('.tar')}-{key}.tar")
            jobs.append(_job(manifest, span, key, part, settings, times))
            home[part] = shard
    workers = available_cores() if workers is None else workers
    for job, made in run_all(write_sample, jobs, _gave_up, workers=workers, timeout=_TIMEOUT, chunk=1):
        meter.update()
        if made.reason == CHANGED:  # what is there by now is of no scan: neither cached nor a failure for good
            raise DataError(f"{job.path}: {next(iter((made.errors or {}).values()))}")
        if made.errors:
            failed.append(job.path)
            meter.note(f"{len(failed)} failed")
        shard = home.pop(job.part)
        waiting[shard.name][job.key] = made
        if len(waiting[shard.name]) == len(shard.spans):
            yield shard, waiting.pop(shard.name)


def _job(manifest: Manifest, span: Span, key: str, part: str, settings: Settings, times: bool) -> Job:
    clips = []
    for row in map(manifest.row, span.rows):
        labels = {head: _class_names(manifest.heads[head], label) for head, label in row.labels.items()}
        clips.append({"clip_id": row.clip_id, "split": row.split, "labels": labels})
    first = manifest.row(span.rows[0])
    streams = {"audio": first.has_audio, "video": first.has_video}
    spans = {name: first.span([name]) if there else (0.0, 0.0) for name, there in streams.items()}
    audio, video = ((low, high) if high > low else None for low, high in spans.values())
    about = {"source": span.path, "clips": clips}
    return Job(
        *(str(first.path), part, key, span.start, span.end, audio, video, about, settings),
        file_bytes=first.file_bytes,
        file_modified=first.file_modified if times else None,
    )


def _class_names(names: list[str], label: int | list[int] | None) -> str | list[str] | None:
    if isinstance(label, list):
        return [names[index] for index in label]
    return None if label is None else names[label]


def _gave_up(job: Job, reason: str) -> EncodingResult:
    return EncodingResult(job.key, errors={"audio": reason} if job.audio else {"video": reason})


def finish_shard(store: Store, shard: Shard, made: dict[str, EncodingResult], parts: Path) -> dict[str, Any]:
    """Puts the samples of a shard together, in the order of the plan, and writes its record."""
    stem = shard.name.removesuffix(".tar")
    temporary, digest, offset = parts / f".{shard.name}.tmp", hashlib.sha256(), 0
    entries: dict[str, dict[str, Any]] = {}
    with naming(parts / shard.name), open(temporary, "wb") as file:
        for key in shard.spans:
            one = made[key]
            entries[key] = {"errors": one.errors or {}}
            if one.size:
                part = (parts / f"{stem}-{key}.tar").read_bytes()
                file.write(part)
                digest.update(part)
                address = Address(shard.name, offset, one.size, one.header, one.crc)
                entries[key] |= {"address": str(address), "facts": one.facts}
                offset += len(part)
        file.write(END)
        digest.update(END)
    samples = sum("address" in entry for entry in entries.values())
    if samples:
        store.put(temporary, shard.name)
        check_shard(store, shard.name, digest.hexdigest(), offset + len(END))
    record = {"sha256": digest.hexdigest(), "bytes": offset + len(END), "samples": samples, "entries": entries}
    store.write(shard.record, json.dumps(seal(record, _SEAL)).encode())
    for key in shard.spans:
        for suffix in (".tar", ".error"):
            (parts / f"{stem}-{key}.tar").with_suffix(suffix).unlink(missing_ok=True)
    return record


def check_shard(store: Store, name: str, digest: str, length: int) -> None:
    """Reads back what was written, before its parts are deleted and a record says that it is done."""
    found = store.sha256(name)
    if found != (digest, length):
        place = f"{store.location}/{name}"
        told = f"has {found[1]} bytes of SHA-256 {found[0]}, not {length} of {digest}, as were written to it"
        raise OSError(errno.EIO, f"{told}: check the disk and run this again", place)


def _tell(report: Report, shards: list[Shard], done: dict[str, dict[str, Any]]) -> None:
    for shard in shards:
        record = done[shard.name]
        report.samples += record["samples"]
        report.bytes += record["bytes"] if record["samples"] else 0
        for key, span in shard.spans.items():
            errors = record["entries"][key]["errors"]
            if errors:
                report.failures[span.path] = "; ".join(dict.fromkeys(errors.values()))


def write_index(
    manifest: Manifest,
    store: Store,
    shards: list[Shard],
    done: dict[str, dict[str, Any]],
    entry: Mapping[str, Any],
) -> None:
    """The manifest of the cache: all rows, in their order, with their addresses or why they have none."""
    names = ["path", "error", "audio_error", "video_error", "has_audio", "has_video", "sample_rate", "channels"]
    names += ["width", "height", "fps"]
    columns = {name: manifest.column(name) for name in names}
    columns |= {name: [None] * len(manifest) for name in FILE_COLUMNS}  # of the originals
    there = {name: manifest.column(f"has_{name}") for name in ("audio", "video")}
    source = CACHE_SOURCE if "source" in manifest.table.column_names else "source"
    columns[source], columns["cache_error"] = list(columns["path"]), [""] * len(manifest)
    for shard in shards:
        for key, span in shard.spans.items():
            found = done[shard.name]["entries"][key]
            for row in span.rows:
                columns["cache_error"][row] = "; ".join(f"{name}: {why}" for name, why in found["errors"].items())
                if "address" in found:
                    columns["path"][row] = found["address"]
                    for name, value in found["facts"].items():
                        columns[name][row] = value
                    for name in ("audio", "video"):
                        if there[name][row] and not found["facts"][f"has_{name}"]:
                            why = found["errors"].get(name, "not kept in the cache")
                            columns[f"{name}_error"][row] = why.split(" (")[0]
                else:
                    columns["error"][row] = next(iter(found["errors"].values()), "nothing to read").split(" (")[0]
    folder = store.local or _parts_folder(store)
    cached = Manifest(manifest.with_columns(columns).table, folder, manifest.heads, allow_absolute=True)
    target = folder / INDEX if store.local else folder / "finished.parquet"
    cached.save(target, entry)
    if store.local is None:
        store.put(target, INDEX)
        shutil.rmtree(folder, ignore_errors=True)
