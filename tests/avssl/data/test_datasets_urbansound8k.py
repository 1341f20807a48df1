from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import open_data
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
# The first and two other rows of the official table.
ROWS = """100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,10,2,children_playing
99812-1-2-0.wav,99812,159.522205,163.522205,2,7,1,car_horn
"""


def lay_out(root: Path, rows: str = ROWS) -> Path:
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    (root / "metadata" / "UrbanSound8K.csv").write_text(HEADER + rows)
    return root


@pytest.mark.parametrize(
    ("fold", "splits"), [(5, "test train train"), (10, "train test train"), (None, "train train train")]
)
def test_rows_and_folds(tmp_path: Path, fold: int | None, splits: str) -> None:
    manifest = build_manifest("urbansound8k", lay_out(tmp_path), fold=fold)
    assert manifest.column("split") == splits.split()
    assert manifest.column("fold") == ["5", "10", "7"]
    assert manifest.labels("sound").tolist() == [3, 2, 1] and len(manifest.heads["sound"]) == 10
    row = manifest.row(1)
    assert row.path == tmp_path / "audio" / "fold10" / "100263-2-0-117.wav"
    assert row.start is None and row.end is None  # the table's are times in the recording that it was cut from
    assert manifest.column("recording")[2] == "99812" and manifest.column("salience")[2] == "2"


def test_missing_and_corrupt_members_in_the_folder_above(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "data" / "UrbanSound8K")
    write_media(root / "audio/fold5/100032-3-0-0.wav", seconds=0.3, video_codec=None, audio_codec="pcm_s16le")
    (root / "audio/fold7").mkdir()
    (root / "audio/fold7/99812-1-2-0.wav").write_bytes(b"")
    manifest = open_data("urbansound8k", tmp_path / "data", cache_dir=tmp_path / "cache", workers=0)
    good, reasons = manifest.usable(audio=True)
    assert good.column("clip_id") == ["100032-3-0-0"]
    assert reasons == {"file not found": 1, "empty file": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,1,0,1,1,11,3,dog_bark\n", r"row 1 \(a\.wav\), column 'fold': '11' is not in 1\.\.10"),
        ("a.wav,1,0,1,1,1,4,dog_bark\n", r"row 1 \(a\.wav\): class 'dog_bark' with classID '4'"),
        ("a.wav,1,0,1,1,1,3,dog\n", r"class 'dog' with classID '3' is none of the ten"),
        ("../a.wav,1,0,1,1,1,3,dog_bark\n", r"row 1, column 'slice_file_name': '\.\./a\.wav'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_manifest("urbansound8k", lay_out(tmp_path, row))


def test_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no metadata/UrbanSound8K\.csv in .*urbansounddataset"):
        build_manifest("urbansound8k", tmp_path)
    with pytest.raises(DataError, match="option fold must be 1 to 10 or null, got 11"):
        build_manifest("urbansound8k", lay_out(tmp_path), fold=11)
