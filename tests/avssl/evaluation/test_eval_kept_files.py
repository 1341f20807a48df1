"""Features, predictions and results that a disk damaged are refused, never compared or put together."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from avssl.commands.embed import FeatureParts, feature_column, read_features
from avssl.evaluation.result import read_predictions, read_result, write_predictions, write_result
from avssl.files import DamagedError

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


RESULT = {
    "kind": "finetune",
    "metrics": {"x/top1": 0.6125, "x/mAP": 1 / 3, "x/count": 144},
    "seeds": [0, 1],
    "no": None,
}


def test_a_flipped_bit_in_a_result_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, RESULT)
    whole, refused = path.read_bytes(), 0
    assert read_result(path) == RESULT
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read_result(path)
        except DamagedError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # the layout, or the name of the checksum's entry
            assert {name: found.get(name) for name in RESULT} == RESULT and len(found) <= len(RESULT) + 1
    assert refused > 0.9 * 8 * len(whole)


def test_who_changes_a_result_by_hand_takes_its_checksum_out(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, RESULT)
    path.write_text(path.read_text().replace("0.6125", "0.7125"))
    with pytest.raises(DamagedError, match=r'result\.json: is not as it was written.*take its entry "sha256" out'):
        read_result(path)
    path.write_text(json.dumps(RESULT))  # as an earlier version wrote it, too
    assert read_result(path) == RESULT
    for broken in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000):
        path.write_bytes(broken)
        with pytest.raises(DamagedError, match=r"result\.json: is damaged, no JSON of avssl \(.*make it again"):
            read_result(path)
