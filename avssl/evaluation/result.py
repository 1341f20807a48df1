"""What a run leaves of its numbers: JSON that says which code, libraries and machine made it, and clips' predictions.

Paired tests between runs, and a second look at errors, need the predictions of every clip.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_matrix, to_numpy
from avssl.files import atomic_path, seal, unseal
from avssl.urls import hidden

PACKAGES = ("avssl", "torch", "torchvision", "torchaudio", "av", "decord", "lightly", "numpy", "scikit-learn", "soxr")


def code_revision() -> str | None:
    """``git describe`` of the checkout that this package runs from, ``-dirty`` when edited; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--long", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """Code revision, library versions, Python, platform, devices and date (UTC): JSON-able, without host names."""
    return {
        "revision": code_revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": {package: version for package in PACKAGES if (version := _version(package)) is not None},
    }


def jsonable(value: Any) -> Any:
    """Plain JSON values: NaN and infinity become null; arrays, tensors, dataclasses, paths and sets are unfolded.

    Raises:
        TypeError: a value of another type, named.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike | datetime.date):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [jsonable(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    raise TypeError(f"cannot write {type(value).__name__} to JSON")


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Writes strict JSON (no NaN literal) with its checksum, without the credentials of URLs in messages of failures;
    the file appears whole or not at all."""
    values = seal(hidden(json.loads(json.dumps(jsonable(result), allow_nan=False))))
    text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`write_result` wrote.

    Raises:
        DamagedError: the file is not as it was written; a ValueError.
        OSError: it cannot be read.
    """
    return unseal(Path(path).read_bytes(), path, "make it again")


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
