"""Features on disk in parts while they are made, so that a stopped run continues; then one Parquet or .npz file."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avssl.evaluation.arrays import FloatArray
from avssl.files import atomic_path

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".npz")
_KEY = b"avssl.part"


def feature_column(values: FloatArray) -> pa.Array:
    """(N, D) as a column of fixed-size lists of float32."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


class FeatureParts:
    """The parts of an output that is being made, in a hidden folder beside it.

    Args:
        output: The file that the parts will make.
        settings: What the work is made from, JSON-able. Parts of other settings are thrown away.

    Attributes:
        done: Items worked on so far, whether or not they gave a row.
        failures: What was not readable among them.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        if output.suffix not in SUFFIXES:
            raise ValueError(f"output: {output} must end in {' or '.join(SUFFIXES)}")
        self.output = output
        self.folder = output.with_name(f".{output.name}.parts")
        self.failures: list[dict[str, Any]] = []
        self.done = 0
        told = json.dumps(settings, sort_keys=True, default=str)
        file = self.folder / "settings.json"
        if file.is_file() and file.read_text(encoding="utf-8") == told:
            self._resume()
            return
        if self.folder.is_dir():
            logger.info("%s: the unfinished work there was made with other settings: starting over", output)
            shutil.rmtree(self.folder)
        with atomic_path(file) as temporary:
            temporary.write_text(told, encoding="utf-8")

    def _resume(self) -> None:
        for part in self._parts():
            state = json.loads(pq.read_schema(part).metadata[_KEY])
            self.done = state["done"]
            self.failures += state["failures"]
        if self.done:
            logger.info("%s: continuing after %d windows", self.output, self.done)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def add(self, table: pa.Table, done: int, failures: Sequence[dict[str, Any]]) -> None:
        """Keeps the rows of the items up to ``done``; a part appears whole or not at all."""
        state = json.dumps({"done": done, "failures": list(failures)})
        with atomic_path(self.folder / f"part-{len(self._parts()):06d}.parquet") as temporary:
            pq.write_table(table.replace_schema_metadata({_KEY: state}), temporary, write_page_checksum=True)
        self.done = done
        self.failures += failures

    def finish(self) -> int:
        """Puts the parts together to the output, removes them, and returns the number of rows."""
        tables = [part for part in self._parts() if pq.read_metadata(part).num_rows]
        if not tables:
            raise ValueError(f"{self.output}: there is not one row to write")
        with atomic_path(self.output) as temporary:
            rows = self._write_parquet(tables, temporary) if self.output.suffix == ".parquet" else 0
            if self.output.suffix == ".npz":
                rows = self._write_npz(tables, temporary)
        self.remove()
        return rows

    def remove(self) -> None:
        """Throws the parts away."""
        shutil.rmtree(self.folder)

    @staticmethod
    def _write_parquet(parts: Sequence[Path], path: Path) -> int:
        schema = pq.read_schema(parts[0]).remove_metadata()
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            for part in parts:
                writer.write_table(_read_table(part).replace_schema_metadata(None))
        return int(pq.read_metadata(path).num_rows)

    @staticmethod
    def _write_npz(parts: Sequence[Path], path: Path) -> int:
        table = pa.concat_tables(_read_table(part).replace_schema_metadata(None) for part in parts)
        arrays: dict[str, Any] = {name: to_array(table[name]) for name in table.column_names}
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return table.num_rows


def to_array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array without objects: (N,), or (N, D) for fixed-size lists."""
    if pa.types.is_fixed_size_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=str)
    return column.to_numpy()


def read_features(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a Parquet or .npz file of features as arrays: clip_id, path, start, end, and (N, D) features.

    Raises:
        ValueError: a Parquet file is damaged.
        zipfile.BadZipFile: a .npz file is.
    """
    if Path(path).suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    table = _read_table(Path(path))
    return {name: to_array(table[name]) for name in table.column_names}


def _read_table(path: Path) -> pa.Table:
    """A Parquet file whose pages are compared with their checksums."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:  # what a damaged page is to Arrow
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path}: is damaged ({str(error).splitlines()[0]}); make it again") from error
