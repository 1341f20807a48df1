"""Features and predictions that a disk damaged are refused, never compared or put together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from avssl.evaluation.feature_parts import FeatureParts, feature_column, read_features
from avssl.evaluation.predictions import read_predictions, write_predictions

VALUES = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
TABLE = pa.table({"clip_id": [str(k) for k in range(50)], "features": feature_column(VALUES)})


def features_at(path: Path) -> Callable[[], np.ndarray]:
    parts = FeatureParts(path, {})
    parts.add(TABLE, 50, [])
    parts.finish()
    return lambda: read_features(path)["features"]


def predictions_at(path: Path) -> Callable[[], np.ndarray]:
    write_predictions(path, [str(k) for k in range(50)], {"kind": VALUES})
    return lambda: read_predictions(path).scores["kind"]


@pytest.mark.parametrize("made", [features_at, predictions_at])
def test_a_flipped_bit_in_the_pages_is_refused_or_harmless(
    made: Callable[[Path], Callable[[], np.ndarray]], tmp_path: Path
) -> None:
    path = tmp_path / "kept.parquet"
    read = made(path)
    whole, expected = path.read_bytes(), read()
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # the footer follows
    refused = 0
    for bit in np.random.default_rng(1).integers(pages * 8, size=100).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read()
        except ValueError:
            refused += 1
        else:
            assert np.array_equal(found, expected)
    assert refused > 50


def test_a_damaged_part_is_not_put_together(tmp_path: Path) -> None:
    parts = FeatureParts(tmp_path / "all.parquet", {})
    parts.add(TABLE, 50, [])
    (part,) = parts.folder.glob("part-*.parquet")
    data = bytearray(part.read_bytes())
    place = data.index(VALUES[7, :4].tobytes()) if VALUES[7, :4].tobytes() in data else len(data) // 3
    data[place] ^= 4
    part.write_bytes(data)
    with pytest.raises(ValueError, match=r"part-000000\.parquet: is damaged"):
        parts.finish()
    assert not (tmp_path / "all.parquet").exists()
