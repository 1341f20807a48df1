import logging
from pathlib import Path

import pytest

from avssl.data.datasets.layout import find_annotations, headerless_rows
from avssl.data.datasets.youtube import Segment, checked_id, youtube_rows
from avssl.data.failures import DataError

ID = "abcDEF-_123"


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}_000030.mp4",  # VGGSound
        f"train/some class/{ID}_000030_000040.mp4",  # Kinetics
        f"a/b/{ID}_30.webm",
        f"{ID}_30_40.wav",
        f"{ID}_30000_40000.flac",
        f"{ID}_30.000.wav",
        f"{ID}_30.000_40.000.wav",
        f"{ID}_30.0_40.0.m4a",
    ],
)
def test_every_usual_name_is_found(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, f"{ID}_000031.mp4", f"Y{ID}.wav", f"{ID}.wav")
    (row,) = youtube_rows([Segment(ID, 30.0, 40.0, "test", "dog")], tmp_path, title="Set")
    assert row == {
        "clip_id": f"{ID}_000030",
        "path": name,
        "start": None,
        "end": None,
        "split": "test",
        "youtube_id": ID,
        "label.sound": "dog",
    }


def test_plain_names_are_clips_only_where_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment = Segment(ID, 4.5, 14.5, "train", None)
    put(tmp_path, f"audio/Y{ID}.wav")
    (row,) = youtube_rows([segment], tmp_path, title="Set", plain_names=True)
    assert row["path"] == f"audio/Y{ID}.wav" and row["start"] is None and row["clip_id"] == f"{ID}_000004.500"
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        (row,) = youtube_rows([segment], tmp_path, title="Set")
    assert row["path"] == f"{ID}_000004.500.mp4"
    assert f"Set: 1 of 1 clips (100.0 %) are missing in {tmp_path}: {ID}_000004.500" in caplog.text


def test_whole_videos_give_the_span(tmp_path: Path) -> None:
    put(tmp_path, f"{ID}.mp4", f"{ID}_000030.mp4", f"sound/{ID}.wav")
    segments = [Segment(ID, start, start + 10, "train", None) for start in (0.0, 30.0)]
    rows = youtube_rows(segments, tmp_path, title="Set", whole_videos=True)
    assert [(row["path"], row["start"], row["end"]) for row in rows] == [(f"{ID}.mp4", 0, 10), (f"{ID}.mp4", 30, 40)]
    rows = youtube_rows(segments, tmp_path, title="Set", whole_videos=True, prefer_audio_files=True)
    assert {row["path"] for row in rows} == {f"sound/{ID}.wav"}


def test_a_repeated_clip_is_in_one_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, f"{ID}_000030.mp4")
    segments = [Segment(ID, 30.0, 40.0, split, label) for split, label in (("train", "a"), ("test", "a"))]
    with caplog.at_level(logging.WARNING):
        rows = youtube_rows(segments, tmp_path, title="Set")
    assert [row["split"] for row in rows] == ["train"]
    assert "are listed more than once and kept as first listed" in caplog.text


def test_ids_are_checked() -> None:
    assert checked_id("-0BIyqJj9ZU", "here") == "-0BIyqJj9ZU"
    for bad in ("", "youtube_id", "-0BIyqJj9Z", "-0BIyqJj9ZUx", "-0BIyqJj9Zä"):
        with pytest.raises(DataError, match=r"here: .* is not a YouTube id"):
            checked_id(bad, "here")


def test_csv_without_a_header(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text('# a comment, of "several", cells\nx, 1.0, "a,b"\n\ny,2.0,c d\n')
    assert list(headerless_rows(file, 3)) == [(2, ["x", "1.0", "a,b"]), (4, ["y", "2.0", "c d"])]
    with pytest.raises(DataError, match=r"list\.csv: line 2: 3 cells instead of 4"):
        list(headerless_rows(file, 4))
    file.write_bytes(b"\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"list\.csv: cannot be read as CSV"):
        list(headerless_rows(file, 2))
    with pytest.raises(DataError, match=r"no file .*other\.csv"):
        list(headerless_rows(tmp_path / "other.csv", 2))


def test_annotations_are_looked_for(tmp_path: Path) -> None:
    put(tmp_path, "lists/a.csv")
    for folder, also in (("lists", []), (str(tmp_path / "lists"), []), (None, ["lists"])):
        found = find_annotations(tmp_path, folder, ["b.csv", "a.csv"], title="Set", source="its site", also=also)
        assert found / "a.csv" == tmp_path / "lists" / "a.csv"
    with pytest.raises(DataError, match=r"Set: no a\.csv in .*, .*annotations; get the annotations from its site and"):
        find_annotations(tmp_path, None, ["a.csv"], title="Set", source="its site")
