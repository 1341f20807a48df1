"""Predictions of every clip beside a result: what paired tests between runs, and a second look at errors, need."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_matrix, to_numpy
from avssl.files import atomic_path

FILE = "predictions.parquet"
_KEY = b"avssl.predictions"
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Predictions:
    """What a run said about each clip of its test set.

    Attributes:
        clip_ids: N names.
        truth: by head (N,) int64 with -1 for unlabelled, or, of a multi-label head, (N, C) float32 zeros and ones with
            a row of -1 for unlabelled; empty where the clips have no labels at all.
        predicted: by head (N,) int64, the best class.
        scores: by head (N, C) float32, kept with 11 significant bits.
        classes: class names by head, where they were given.
    """

    clip_ids: list[str]
    truth: dict[str, NDArray[Any]]
    predicted: dict[str, IntArray]
    scores: dict[str, FloatArray]
    classes: dict[str, list[str]]


def write_predictions(
    path: str | os.PathLike[str],
    clip_ids: Sequence[str],
    scores: Mapping[str, Arrayish],
    truth: Mapping[str, Arrayish] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes Parquet with ``clip_id`` and, by head, ``truth.HEAD``, ``predicted.HEAD`` and ``scores.HEAD`` (float16).

    Args:
        path: The file; it appears whole or not at all.
        scores, truth, classes: see `Predictions`.

    Raises:
        ValueError: as many scores or labels as clips are needed; NaN or infinite scores.
    """
    columns: dict[str, pa.Array] = {"clip_id": pa.array(list(clip_ids), pa.string())}
    for head, values in scores.items():
        matrix = as_matrix(values, f"scores of {head}")
        target = to_numpy(truth[head]) if truth and head in truth else np.full(len(matrix), -1)
        if len(matrix) != len(clip_ids) or len(target) != len(clip_ids):
            raise ValueError(f"{head}: {len(matrix)} scores and {len(target)} labels for {len(clip_ids)} clips")
        columns[f"truth.{head}"] = _truth_column(target)
        columns[f"predicted.{head}"] = pa.array(matrix.argmax(axis=1), pa.int64())
        half = np.clip(matrix, -_LARGEST, _LARGEST).astype(np.float16)
        columns[f"scores.{head}"] = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), matrix.shape[1])
    told = {
        "heads": list(scores),
        "classes": {head: list(names) for head, names in (classes or {}).items() if head in scores},
        "labelled": [head for head in scores if truth and head in truth],
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(told).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _truth_column(target: NDArray[Any]) -> pa.Array:
    if target.ndim == 1:
        return pa.array(target, pa.int64(), mask=target < 0)
    rows = [None if row[0] < 0 else np.flatnonzero(row > 0).tolist() for row in target]
    return pa.array(rows, pa.list_(pa.int64()))


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Reads what `write_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:  # what a damaged page is to Arrow
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path}: not a Parquet file, or damaged: {str(error).splitlines()[0]}") from error
    if _KEY not in (table.schema.metadata or {}):
        raise ValueError(f"{path}: holds no predictions (no {_KEY.decode()!r} metadata)")
    told = json.loads(table.schema.metadata[_KEY])
    truth, predicted, scores = {}, {}, {}
    for head in told["heads"]:
        column = table[f"scores.{head}"].combine_chunks()
        scores[head] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        scores[head] = scores[head].reshape(len(table), column.type.list_size)
        predicted[head] = table[f"predicted.{head}"].to_numpy()
        if head in told["labelled"]:
            truth[head] = _read_truth(table[f"truth.{head}"], scores[head].shape[1])
    return Predictions(table["clip_id"].to_pylist(), truth, predicted, scores, told["classes"])


def _read_truth(column: pa.ChunkedArray, classes: int) -> NDArray[Any]:
    if not pa.types.is_list(column.type):
        return column.fill_null(-1).to_numpy()
    target = np.zeros((len(column), classes), dtype=np.float32)
    for row, found in enumerate(column.to_pylist()):
        target[row] = -1 if found is None else 0
        target[row, found or []] = 1
    return target
