"""What makes a table a good manifest: its columns, their types and the rules that its values keep."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("pretrain", "train", "val", "test", "")
LABEL_PREFIX = "label."
COLUMNS: dict[str, pa.DataType] = {
    "clip_id": pa.string(),
    "path": pa.string(),
    "start": pa.float64(),
    "end": pa.float64(),
    "split": pa.string(),
    "duration": pa.float64(),
    "audio_start": pa.float64(),
    "audio_end": pa.float64(),
    "video_start": pa.float64(),
    "video_end": pa.float64(),
    "has_audio": pa.bool_(),
    "has_video": pa.bool_(),
    "sample_rate": pa.int32(),
    "channels": pa.int32(),
    "fps": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "error": pa.string(),
    "audio_error": pa.string(),
    "video_error": pa.string(),
    "warning": pa.string(),
    "file_bytes": pa.int64(),
    "file_modified": pa.int64(),  # microseconds since 1970
}
# What tells a file from another one in its place. A copy has other times: no part of what a manifest says of its clips.
FILE_COLUMNS = ("file_bytes", "file_modified")
# Where a cache says which file a row is of, if the data have a column "source" of their own.
CACHE_SOURCE = "cache_source"
_NEVER_NULL = ("clip_id", "path", "split", "error", "audio_error", "video_error", "warning")
CLASS = pa.int64()
CLASSES = pa.list_(pa.int64())
_LISTS = (list, tuple, set, frozenset, np.ndarray)


class ManifestError(ValueError):
    """A manifest that breaks its rules; the message names the clips and the fix."""


def to_array(values: Sequence[Any], name: str, several: bool = False) -> pa.Array:
    """``values`` of column ``name`` in Arrow, None where unknown.

    Labels are class indices; or lists of them where ``several`` is set or one value is a list.

    Raises:
        ManifestError: a value is not of the column's type.
    """
    if name.startswith(LABEL_PREFIX):
        dtype = CLASSES if several or any(_is_list(value) for value in values) else CLASS
    else:
        dtype = COLUMNS.get(name, pa.string())
    if dtype == pa.string():
        values = [value if value is None else str(value) for value in values]
    elif dtype == CLASSES:
        values = [value if _is_list(value) else None if _is_missing(value) else [value] for value in values]
    if dtype == CLASSES or pa.types.is_integer(dtype):
        _refuse_fractions(values, name)
    try:
        return pa.array(values, dtype, from_pandas=True)  # from_pandas: NaN means "unknown", hence null
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ManifestError(f"column {name!r} must hold {dtype}: {error}") from error


def class_indices(values: Sequence[Any], classes: Sequence[str], column: str) -> list[Any]:
    """Class names replaced by their indices; a list of several labels becomes a sorted list without repetitions.

    Raises:
        ManifestError: a name that ``classes`` does not have, or a label missing within a list.
    """
    index = {name: i for i, name in enumerate(classes)}
    flat = [label for value in values for label in (value if _is_list(value) else (value,))]
    unknown = sorted({label for label in flat if isinstance(label, str) and label not in index})
    if unknown:
        raise ManifestError(f"column {column!r}: unknown classes {some(unknown)}; fix the rows or add them to heads")

    def indices(value: Any) -> Any:
        if not _is_list(value):
            return index[value] if isinstance(value, str) else value
        if any(_is_missing(label) or _is_list(label) for label in value):
            raise ManifestError(f"column {column!r}: {list(value)} must hold classes only, neither lists nor blanks")
        return sorted({index[label] if isinstance(label, str) else label for label in value})

    return [indices(value) for value in values]


def _refuse_fractions(values: Sequence[Any], name: str) -> None:
    """Arrow would cut 0.5 down to 0, which is another class."""
    for value in (item for entry in values for item in (entry if _is_list(entry) else (entry,))):
        if isinstance(value, float) and not (math.isnan(value) or value.is_integer()):
            raise ManifestError(f"column {name!r} must hold whole numbers, not {value}")


def list_rows(column: pa.ChunkedArray) -> np.ndarray:
    """The row (L,) int64 of each value that ``list_flatten`` gives for ``column``.

    pyarrow's ``list_parent_indices`` is no mate of ``list_flatten``: it also counts values that lie under a null list.
    """
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return np.repeat(np.arange(len(column)), lengths)


def _is_list(value: Any) -> bool:
    return isinstance(value, _LISTS)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _type_of(name: str, found: pa.DataType | None) -> pa.DataType:
    if name.startswith(LABEL_PREFIX):
        return CLASSES if found is not None and _is_list_type(found) else CLASS
    return COLUMNS.get(name, pa.string())


def _is_list_type(dtype: pa.DataType) -> bool:
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype)


def normalise(table: pa.Table, heads: Collection[str]) -> pa.Table:
    """Every known column present, in order and of its type; the extras behind them as strings.

    Raises:
        ManifestError: a needed column is missing, one has no head, or one is of another type.
    """
    for required in ("clip_id", "path"):
        if required not in table.column_names:
            raise ManifestError(f"column {required!r} is missing; every row needs one")
    labels = [LABEL_PREFIX + head for head in heads]
    for name in table.column_names:
        if name.startswith(LABEL_PREFIX) and name not in labels:
            raise ManifestError(f"column {name!r} has no head {name.removeprefix(LABEL_PREFIX)!r}; add it to heads")
    names = [*COLUMNS, *labels, *(n for n in table.column_names if n not in COLUMNS and n not in labels)]
    columns = {}
    for name in names:
        if name not in table.column_names:
            column = pa.nulls(table.num_rows, _type_of(name, None))
        else:
            dtype = _type_of(name, table[name].type)
            try:
                column = table[name].cast(dtype).combine_chunks()
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ManifestError(f"column {name!r} must hold {dtype}: {error}") from error
        columns[name] = column.fill_null("") if name in _NEVER_NULL else column
    return pa.table(columns)


def check(table: pa.Table, heads: Mapping[str, Sequence[str]], allow_absolute: bool) -> None:
    """Refuses a normalised ``table`` that breaks the manifest's rules.

    Raises:
        ManifestError: see :class:`avssl.data.manifest.Manifest`.
    """
    ids = table["clip_id"]
    if pc.any(pc.equal(ids, "")).as_py():
        raise ManifestError(f"row {pc.index(ids, '').as_py()} has no clip_id; give every row one")
    if pc.count_distinct(ids).as_py() != len(ids):
        repeated = sorted(name for name, count in Counter(ids.to_pylist()).items() if count > 1)
        raise ManifestError(f"duplicate clip ids: {some(repeated)}; make them unique")
    _check_paths(table["path"], ids, allow_absolute)

    def refuse(bad: pa.ChunkedArray, message: str) -> None:
        bad = bad.fill_null(False)
        if pc.any(bad).as_py():
            raise ManifestError(f"{message}: {some(ids.filter(bad).to_pylist())}")

    refuse(pc.invert(pc.is_in(table["split"], pa.array(SPLITS))), f"split must be one of {SPLITS}, in clips")
    refuse(pc.less(table["start"], 0.0), "start must not be negative (seconds in the file), in clips")
    refuse(pc.less_equal(table["end"], pc.fill_null(table["start"], 0.0)), "end must lie after start, in clips")
    for head, classes in heads.items():
        if len(set(classes)) != len(classes):
            raise ManifestError(f"head {head!r} names a class twice; class names must be unique")
        label = table[LABEL_PREFIX + head]
        refuse(
            _outside(label, len(classes)),
            f"label of head {head!r} out of range 0..{len(classes) - 1} (null = unlabelled), in clips",
        )


def _outside(label: pa.ChunkedArray, classes: int) -> pa.ChunkedArray:
    """(N,) true where a label, or one of several, is no class."""
    several = _is_list_type(label.type)
    values = pc.list_flatten(label) if several else label
    outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, classes))
    if not several:
        return outside
    rows = np.zeros(len(label), dtype=bool)
    rows[list_rows(label)[pc.fill_null(outside, True).to_numpy()]] = True
    return pa.chunked_array([rows])


def _check_paths(paths: pa.ChunkedArray, ids: pa.ChunkedArray, allow_absolute: bool) -> None:
    """No path leaves the root by its text. Symbolic links under the root are the user's own and may point anywhere."""
    suspects = pc.match_substring_regex(paths, r"^/|(^|/)\.\.(/|$)|\x00|^$")
    if not pc.any(suspects).as_py():
        return
    for clip, path in zip(ids.filter(suspects).to_pylist(), paths.filter(suspects).to_pylist(), strict=True):
        if not path or "\0" in path:
            raise ManifestError(f"clip {clip!r}: path {path!r} is empty or holds a NUL byte")
        if path.startswith("/"):
            if not allow_absolute:
                raise ManifestError(f"clip {clip!r}: path {path!r} is absolute; make it relative to the root, or "
                                    "allow such paths by --data.options '{allow_absolute: true}'")  # fmt: skip
        elif posixpath.normpath(path).split("/")[0] == "..":
            raise ManifestError(f"clip {clip!r}: path {path!r} leaves the root; choose a root above it")


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first of ``names``, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
