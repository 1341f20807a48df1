import logging
from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import open_data
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = (
    HEADER
    + "strumming guitar,aaaaaaaaaaa,12,22,train,0\nabseiling,bbbbbbbbbbb,0,10,train,0\n"
    + "bowling,ccccccccccc,3,13,train,0\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "validate.csv").write_text(HEADER + "mowing lawn,ddddddddddd,0,10,validate,1\n")
    (tmp_path / "test.csv").write_text(HEADER + "singing,eeeeeeeeeee,0,10,test,1\n")
    return tmp_path


def test_only_its_classes_are_taken(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = build_manifest("kinetics-sounds", root)
    names = manifest.heads["sound"]
    rows = [(row.clip_id, row.split, names[row.labels["sound"] or 0]) for row in map(manifest.row, range(3))]
    assert len(manifest) == 3 and rows == [
        ("aaaaaaaaaaa_000012", "train", "strumming guitar"),
        ("ccccccccccc_000003", "train", "bowling"),
        ("ddddddddddd_000000", "test", "mowing lawn"),
    ]
    assert "29 classes have no clip: blowing nose, " in caplog.text


def test_versions_of_the_class_list(root: Path) -> None:
    lists = {k: build_manifest("kinetics-sounds", root, classes=k).heads["sound"] for k in (31, 32, 34)}
    assert {k: len(names) for k, names in lists.items()} == {31: 31, 32: 32, 34: 34}
    assert all(names == sorted(set(names)) for names in lists.values())
    assert set(lists[32]) - set(lists[31]) == {"strumming guitar"}
    assert set(lists[34]) - set(lists[32]) == {"patting", "using computer"}
    assert "strumming guitar" not in lists[31] and len(build_manifest("kinetics-sounds", root, classes=31)) == 2
    with pytest.raises(DataError, match="option classes must be 31, 32 or 34, got 33"):
        build_manifest("kinetics-sounds", root, classes=33)


def test_the_released_names_are_kinetics_400s() -> None:
    from torchvision.models import video

    from avssl.data.datasets.kinetics_sounds import CLASSES_34, RENAMED

    released = video.R2Plus1D_18_Weights.KINETICS400_V1.meta["categories"]
    assert len(released) == 400 and set(CLASSES_34) - set(released) == {"patting"}
    assert set(RENAMED.values()) <= set(released) and not set(RENAMED) & set(released)


def test_names_of_before_the_release(root: Path) -> None:
    old = "fingerpicking,aaaaaaaaaaa,1,11,train\ntyping,bbbbbbbbbbb,1,11,train\nblowing_out,ccccccccccc,1,11,train\n"
    (root / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + old)
    manifest = build_manifest("kinetics-sounds", root, classes=34).select("train")
    found = [manifest.heads["sound"][label] for label in manifest.labels("sound")]
    assert found == ["strumming guitar", "using computer", "blowing out candles"]


def test_splits(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert build_manifest("kinetics-sounds", root, test="test").column("split") == ["train", "train", "val", "test"]
    (root / "train.csv").unlink()
    (root / "validate.csv").rename(root / "val.csv")
    with caplog.at_level(logging.WARNING):
        assert build_manifest("kinetics-sounds", root).column("split") == ["test"]
    assert "no train.csv in" in caplog.text and "there is no split train" in caplog.text
    with pytest.raises(DataError, match="option test must be validate or test, got 'val'"):
        build_manifest("kinetics-sounds", root, test="val")
    (root / "val.csv").unlink()
    with pytest.raises(DataError, match=r"no validate\.csv or val\.csv .*cvdfoundation/kinetics-dataset"):
        build_manifest("kinetics-sounds", root)


def test_a_small_tree_with_missing_and_corrupt_clips(root: Path, tmp_path: Path) -> None:
    write_media(root / "train" / "strumming guitar" / "aaaaaaaaaaa_000012_000022.mp4", seconds=0.4)
    (root / "ddddddddddd_000000_000010.mp4").write_bytes(b"\0" * 100)
    manifest = open_data("kinetics-sounds", root, cache_dir=tmp_path / "cache", workers=0)
    assert [bool(error) for error in manifest.column("error")] == [False, True, True]
    assert manifest.row(0).has_audio and manifest.row(0).path.parent.name == "strumming guitar"
    assert manifest.row(2).path.is_file() and not manifest.row(1).path.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("bowling,aaaaaaaaaaa,10,10,train,0", r"train\.csv: row 1: the clip's times, 10 to 10"),
        ("bowling,aaaaaaaaaaa,,10,train,0", r"train\.csv: row 1: the clip's times, None to 10"),
        ("bowling,aaaaaaaaaaa,x,10,train,0", r"train\.csv: row 1, column 'time_start': 'x' is not a number"),
        ("bowling,aaa,0,10,train,0", r"train\.csv: row 1: 'aaa' is not a YouTube id"),
    ],
)
def test_wrong_rows_are_named(root: Path, row: str, message: str) -> None:
    (root / "train.csv").write_text(HEADER + row + "\n")
    with pytest.raises(DataError, match=message):
        build_manifest("kinetics-sounds", root)


def test_lists_of_another_data_set(root: Path) -> None:
    for name in ("train.csv", "validate.csv", "test.csv"):
        (root / name).write_text(HEADER + "abseiling,bbbbbbbbbbb,0,10,train,0\n")
    with pytest.raises(DataError, match="have none of its classes"):
        build_manifest("kinetics-sounds", root)


@pytest.mark.realdata
@pytest.mark.parametrize("version", [31, 32])
def test_the_published_class_lists(real_data: Path, version: int) -> None:
    from avssl.data.datasets.kinetics_sounds import CLASSES

    published = (real_data / "annotations" / "kinetics-sounds" / f"classes_{version}.txt").read_text().split("\n")
    assert CLASSES[version] == sorted(filter(None, published))
