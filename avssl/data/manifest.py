"""The list of clips that a run works on: one Arrow table, one Parquet file.

A row is a clip: a file (or a span of one), its split, its labels, and what a scan found out about the file. Rows live
in Arrow memory rather than in Python objects, so that a manifest of millions of rows is loaded in moments and is not
copied page by page into every worker by reference counting.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avssl.data.manifest_checks import (
    CACHE_SOURCE,
    FILE_COLUMNS,
    LABEL_PREFIX,
    SPLITS,
    ManifestError,
    check,
    class_indices,
    list_rows,
    normalise,
    to_array,
)
from avssl.data.shards.store import is_address
from avssl.data.spans import MIN_SHARE, NO_CHANNEL, covered, why_not_cut
from avssl.files import atomic_path

if TYPE_CHECKING:
    from avssl.data.media.audio import Channel

METADATA_KEY = b"avssl.manifest"
_DIGEST_KEY = b"avssl.manifest.sha256"
_SPAN_COLUMNS = ("audio_start", "audio_end", "video_start", "video_end")
_ROW_COLUMNS = (
    *("clip_id", "start", "end", "duration", *_SPAN_COLUMNS, "has_audio", "has_video", "split"),
    *FILE_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip. ``path`` lies under the manifest's root; ``start``/``end`` are seconds in the file, None = its bounds.

    ``duration`` is the whole file's, in seconds, and ``audio_start`` to ``video_end`` say between which seconds of the
    file each stream runs. ``file_bytes`` and ``file_modified`` (microseconds since 1970) are the file's at the scan.
    ``has_audio``/``has_video`` are None until the manifest is scanned, the others where unknown.
    ``labels`` maps every head to a class index, or to a list of them where the head is multi-label; None where the clip
    is unlabelled.
    """

    clip_id: str
    path: Path
    start: float | None
    end: float | None
    duration: float | None
    audio_start: float | None
    audio_end: float | None
    video_start: float | None
    video_end: float | None
    has_audio: bool | None
    has_video: bool | None
    labels: dict[str, int | list[int] | None]
    split: str
    file_bytes: int | None = None
    file_modified: int | None = None

    def span(self, modalities: Collection[str]) -> tuple[float, float]:
        """`Manifest.spans` of this clip: (low, high) seconds in the file."""

        def known(name: str) -> float:
            value = getattr(self, name)
            return np.nan if value is None else value

        streams = [(known(f"{name}_start"), known(f"{name}_end")) for name in modalities]
        low, high = covered(known("start"), known("end"), known("duration"), streams)
        return float(low), float(high)


class Manifest:
    """Immutable table of clips under one root folder.

    Args:
        table: columns of `COLUMNS` (missing ones become null, "" for ``split`` and errors), ``label.<head>`` int64,
            or list<int64> where a clip has several labels, for every head, and any extra columns, which are kept as
            strings.
        root: folder that the paths are relative to.
        heads: head name -> ordered class names; a label is an index into them.
        allow_absolute: accept absolute paths: a choice of who opens the data, which no file makes.

    Raises:
        ManifestError: duplicate or empty clip ids, a path that leaves the root, a label out of range, an unknown
            split, a span that ends before it starts.
    """

    def __init__(
        self,
        table: pa.Table,
        root: str | Path,
        heads: Mapping[str, Sequence[str]] | None = None,
        *,
        allow_absolute: bool = False,
    ) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self.heads: dict[str, list[str]] = {head: list(classes) for head, classes in (heads or {}).items()}
        self.allow_absolute = allow_absolute
        self.table = normalise(table, self.heads)
        check(self.table, self.heads, allow_absolute)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        root: str | Path,
        heads: Mapping[str, Sequence[str]] | None = None,
        *,
        allow_absolute: bool = False,
    ) -> Manifest:
        """Build from mappings with ``clip_id``, ``path`` and any other column; a missing key is null.

        ``label.<head>`` may be a class index or a class name, or a list of them: then the head is multi-label. An empty
        list is a clip in which no class is present, None one that is unlabelled.
        """
        names = dict.fromkeys(["clip_id", "path", *(key for row in rows for key in row)])
        columns: dict[str, pa.Array] = {}
        for name in names:
            values = [row.get(name) for row in rows]
            if name.startswith(LABEL_PREFIX) and name.removeprefix(LABEL_PREFIX) in (heads or {}):
                classes = (heads or {})[name.removeprefix(LABEL_PREFIX)]
                values = class_indices(values, classes, name)
            columns[name] = to_array(values, name)
        return cls(pa.table(columns), root, heads, allow_absolute=allow_absolute)

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None, *, allow_absolute: bool = False) -> Manifest:
        """Read a file written by `save`, comparing its checksums. ``root`` replaces the stored one of moved data.

        ``allow_absolute`` is the caller's alone: files of earlier versions say that they may, which does not count.

        Raises:
            ManifestError: it is damaged, no manifest, or has absolute paths that are not allowed.
            OSError: it cannot be read.
        """
        again = "build the manifest again"
        try:
            table = pq.read_table(path, memory_map=True, page_checksum_verification=True)
            stored = table.schema.metadata or {}
            digest = _footer_digest(table, stored.get(METADATA_KEY, b""))
        except (pa.ArrowException, OSError, ValueError) as error:  # what a damaged page or footer is to Arrow
            if isinstance(error, OSError) and error.errno:
                raise
            why = str(error).splitlines()[0]
            raise ManifestError(f"{path}: not a Parquet file, or damaged ({why}); {again}") from error
        if METADATA_KEY not in stored:
            raise ManifestError(f"{path}: not a manifest (no 'avssl.manifest' metadata); write it with Manifest.save")
        if stored.get(_DIGEST_KEY, digest) != digest:
            raise ManifestError(f"{path}: damaged (the checksum of its footer differs); {again}")
        about = json.loads(stored[METADATA_KEY])
        return cls(table, root or about["root"], about["heads"], allow_absolute=allow_absolute)

    def save(self, path: str | Path, entry: Mapping[str, Any] | None = None) -> None:
        """Write Parquet (zstd) atomically: a reader sees the old file or the new one, never half of one.

        ``entry`` holds the keys of a data YAML, such as ``clip_seconds``, that go with the file; `load` ignores them.
        """
        metadata: dict[str, Any] = {"root": str(self.root), "heads": self.heads}
        if entry:
            metadata["entry"] = dict(entry)
        text = json.dumps(metadata).encode()
        digest = _footer_digest(self.table, text)
        table = self.table.replace_schema_metadata({METADATA_KEY: text, _DIGEST_KEY: digest})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        kinds = {head: " of several labels" for head in self.multilabel}
        heads = ", ".join(f"{head}: {len(names)} classes{kinds.get(head, '')}" for head, names in self.heads.items())
        return f"Manifest({len(self)} clips, root={str(self.root)!r}, heads={{{heads}}}, digest={self.digest})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.table, self.root, self.heads, self.allow_absolute)

    def row(self, index: int) -> ClipRow:
        """The clip at ``index`` (negative counts from the end)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a manifest of {len(self)} clips")
        index %= len(self)
        table = self.table
        return ClipRow(
            path=self.root / table["path"][index].as_py(),
            labels={head: table[LABEL_PREFIX + head][index].as_py() for head in self.heads},
            **{name: table[name][index].as_py() for name in _ROW_COLUMNS},
        )

    def lean(self) -> Manifest:
        """The clips with what `row` tells of them and nothing else: less for every worker to hold."""
        return self._with(self.table.select(["path", *_ROW_COLUMNS, *(LABEL_PREFIX + head for head in self.heads)]))

    def column(self, name: str) -> list[Any]:
        """All values of one column, None for null."""
        if name not in self.table.column_names:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.table.column_names)}")
        return self.table[name].to_pylist()

    def files(self) -> np.ndarray:
        """(N,) int64 numbers of the media files: equal for segments of one, also where a cache keeps them apart."""
        names = self.column("path")
        for column in ("source", CACHE_SOURCE):
            if column in self.table.column_names and "cache_error" in self.table.column_names:
                found = zip(self.column(column), self.column("cache_error"), names, strict=True)
                names = [name if error is None or source is None else source for source, error, name in found]
        return np.unique(np.asarray(names, dtype=object), return_inverse=True)[1].astype(np.int64)

    @cached_property
    def multilabel(self) -> frozenset[str]:
        """Heads whose clips have several labels."""
        return frozenset(head for head in self.heads if pa.types.is_list(self.table[LABEL_PREFIX + head].type))

    def labels(self, head: str) -> np.ndarray:
        """Labels of ``head``: (N,) int64 classes, -1 where unlabelled.

        Of a multi-label head (N, C) float32 zeros and ones, a row of -1 where unlabelled.
        """
        column = self._labels(head)
        if head not in self.multilabel:
            return column.fill_null(-1).to_numpy()
        hot = np.zeros((len(self), len(self.heads[head])), dtype=np.float32)
        hot[self.label_pairs(head)] = 1
        hot[column.is_null().to_numpy()] = -1
        return hot

    def label_pairs(self, head: str) -> tuple[np.ndarray, np.ndarray]:
        """Every label of ``head`` as (row, class), both (L,) int64 in the order of rows.

        For counting: it takes far less memory than the (N, C) of a multi-label head.
        """
        column = self._labels(head)
        if head in self.multilabel:
            return list_rows(column), pc.list_flatten(column).to_numpy()
        labels = column.fill_null(-1).to_numpy()
        rows = np.flatnonzero(labels >= 0)
        return rows, labels[rows]

    def labelled(self, head: str) -> np.ndarray:
        """(N,) bool, true where ``head`` is labelled, be it with no class at all."""
        return self._labels(head).is_valid().to_numpy()

    def _labels(self, head: str) -> pa.ChunkedArray:
        if head not in self.heads:
            raise KeyError(f"no head {head!r}; there are {', '.join(self.heads) or 'none'}")
        return self.table[LABEL_PREFIX + head]

    def select(self, split: str | None = None, mask: Sequence[bool] | np.ndarray | None = None) -> Manifest:
        """The clips of one split and/or those where ``mask`` (N,) is true, in their order."""
        keep = np.ones(len(self), dtype=bool)
        if mask is not None:
            mask = np.asarray(mask, dtype=bool)
            if mask.shape != keep.shape:
                raise ValueError(f"mask has shape {mask.shape}, the manifest has {len(self)} rows")
            keep &= mask
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"unknown split {split!r}: use one of {', '.join(map(repr, SPLITS))}")
            keep &= pc.equal(self.table["split"], split).to_numpy()
        return self._with(self.table.filter(pa.array(keep)))

    def take(self, indices: Sequence[int] | np.ndarray) -> Manifest:
        """The clips at ``indices``, in that order; an index may not repeat (clip ids stay unique)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(np.unique(indices)) != len(indices):
            raise ValueError("an index repeats; a manifest holds a clip once")
        return self._with(self.table.take(pa.array(indices)))

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> Manifest:
        """A copy in which ``columns`` (name -> N values) are added or replaced."""
        table = self.table
        for name, values in columns.items():
            array = to_array(values, name, several=name.removeprefix(LABEL_PREFIX) in self.multilabel)
            position = table.schema.get_field_index(name)
            table = table.append_column(name, array) if position < 0 else table.set_column(position, name, array)
        return Manifest(table, self.root, self.heads, allow_absolute=self.allow_absolute)

    @property
    def scanned(self) -> bool:
        """Whether all is known that a scan finds out; it is not of manifests from before streams had their spans."""
        if self.table["has_audio"].null_count or self.table["has_video"].null_count:
            return False
        fine = pc.equal(self.table["error"], "")
        for name in ("audio", "video"):
            unknown = pc.and_(self.table[f"{name}_start"].is_null(), self.table[f"{name}_end"].is_null())
            if pc.any(pc.and_(pc.and_(fine, self.table[f"has_{name}"]), unknown)).as_py():
                return False
        return True

    def spans(self, modalities: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
        """The seconds of its file from which each clip can be cut: where all streams of ``modalities`` run.

        Returns:
            (N,) low and (N,) high; nothing can be cut where ``high <= low``, and high is NaN where it is unknown.
            Without any modality it is the segment as far as the file has it.
        """

        def bounds(name: str) -> np.ndarray:
            return self.table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()

        streams = [(bounds(f"{name}_start"), bounds(f"{name}_end")) for name in modalities]
        return covered(bounds("start"), bounds("end"), bounds("duration"), streams)

    def reasons(
        self, audio: bool = False, video: bool = False, clip_seconds: float | None = None, channel: Channel = "mean"
    ) -> list[str]:
        """Why each clip cannot be used when audio and/or video are needed; "" where it can.

        With ``clip_seconds`` also "streams cover too little of the clip": of a clip of that length, or of all that a
        shorter segment has, the streams cover less than 5 %. With ``channel`` the number of one also "no such channel",
        where audio is needed.
        """
        errors = self.table["error"].to_pylist()
        modalities = [name for name, needed in (("audio", audio), ("video", video)) if needed]
        for name in modalities:
            streams = zip(self.table[f"has_{name}"].to_pylist(), self.table[f"{name}_error"].to_pylist(), strict=True)
            for i, (present, why) in enumerate(streams):
                if not errors[i] and not present:
                    errors[i] = "not scanned" if present is None else why or f"no {name} stream"
        if audio and channel != "mean":
            for i, (path, count) in enumerate(zip(self.column("path"), self.column("channels"), strict=True)):
                # A sample of a cache holds the one channel that the cache was made for.
                if not errors[i] and count is not None and channel >= count and not is_address(path):
                    errors[i] = NO_CHANNEL
        alone = [self.spans([name]) for name in modalities]
        low, high = self.spans(modalities)
        outside = np.any([last <= first for first, last in alone or [(low, high)]], axis=0)
        shares = self.shares(modalities, clip_seconds) if clip_seconds else np.ones(len(self))
        for i in np.flatnonzero((high <= low) | (shares < MIN_SHARE)).tolist():
            errors[i] = errors[i] or why_not_cut(low[i], high[i], outside[i], shares[i])
        return errors

    def warned(self, warning: str) -> np.ndarray:
        """(N,) bool: the scan warns of the clip's file with this reason, maybe among others."""
        return np.asarray([warning in told.split("; ") for told in self.table["warning"].to_pylist()], dtype=bool)

    @property
    def warnings(self) -> dict[str, int]:
        """Clips of files that can be used, but not wholly as they are, by reason: the most common first."""
        told = filter(None, self.table["warning"].to_pylist())
        return dict(Counter(reason for text in told for reason in text.split("; ")).most_common())

    def shares(self, modalities: Collection[str], clip_seconds: float) -> np.ndarray:
        """(N,) share, 0 to 1, that the streams of ``modalities`` cover of a clip, or of a segment that is shorter.

        The rest of its sound would be zeros. 1 where it is unknown, and for pictures alone, which are never padded.
        """
        if "audio" not in modalities:
            return np.ones(len(self))
        low, high = self.spans(modalities)
        first, last = self.spans(())
        with np.errstate(invalid="ignore", divide="ignore"):
            there = np.clip(high - low, 0.0, clip_seconds) / np.clip(last - first, 0.0, clip_seconds)
        return np.nan_to_num(there, nan=1.0)

    def usable(
        self, audio: bool = False, video: bool = False, clip_seconds: float | None = None, channel: Channel = "mean"
    ) -> tuple[Manifest, Counter[str]]:
        """Drop clips that cannot be used (see `reasons`); returns the rest and the counted reasons."""
        reasons = self.reasons(audio, video, clip_seconds, channel)
        return self.select(mask=[not reason for reason in reasons]), Counter(filter(None, reasons))

    def coverage(self, audio: bool = False, video: bool = False) -> dict[str, Any]:
        """What to print beside a metric: ``{"clips", "usable", "share", "reasons"}``, JSON-able."""
        reasons = Counter(filter(None, self.reasons(audio, video)))
        usable = len(self) - sum(reasons.values())
        share = usable / len(self) if len(self) else 0.0
        return {"clips": len(self), "usable": usable, "share": share, "reasons": dict(reasons.most_common())}

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of the contents (rows in order, heads); the same wherever the root is, and for copied files."""
        digest = hashlib.sha256(json.dumps(sorted(self.heads.items())).encode())
        for name in sorted(set(self.table.column_names) - set(FILE_COLUMNS)):
            column = self.table[name]
            digest.update(f"\n{name}:{column.type}:".encode())
            digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
            if pa.types.is_string(column.type):
                # JSON quotes every value, so that no two lists of strings are the same bytes.
                digest.update(json.dumps(column.fill_null("").to_pylist()).encode())
            elif pa.types.is_list(column.type):
                digest.update(pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype("<i4").tobytes())
                digest.update(pc.list_flatten(column).to_numpy().astype("<i8").tobytes())
            else:
                values = column.fill_null(False if pa.types.is_boolean(column.type) else 0).to_numpy()
                digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()[:16]

    def _with(self, table: pa.Table) -> Manifest:
        return _restore(table.combine_chunks(), self.root, self.heads, self.allow_absolute)


def _restore(table: pa.Table, root: Path, heads: dict[str, list[str]], allow_absolute: bool) -> Manifest:
    """A manifest whose table is already known to be good: unpickled, or a subset of another."""
    manifest = object.__new__(Manifest)
    manifest.table, manifest.root, manifest.heads, manifest.allow_absolute = table, root, heads, allow_absolute
    return manifest


def _footer_digest(table: pa.Table, metadata: bytes) -> bytes:
    """SHA-256 of what no page's checksum covers: number of rows, columns and their nulls, and ``metadata``."""
    columns = [(name, column.null_count) for name, column in zip(table.column_names, table.columns, strict=True)]
    return hashlib.sha256(json.dumps([len(table), columns]).encode() + metadata).hexdigest().encode()
