import csv
import logging
import shutil
from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import open_data
from avssl.data.datasets import build_manifest
from avssl.data.datasets.epic_kitchens import seconds
from avssl.data.failures import DataError

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def line(narration: str, start: str, stop: str, verb: int = 0, noun: int = 0) -> str:
    video = narration.rsplit("_", 1)[0]
    return (
        f'{narration},{video[:3]},{video},00:00:00.5,{start},{stop},1,2,"cut, then wash",cut,{verb},onion,{noun},'
        "\"['onion', 'knife']\",\"[1, 2]\"\n"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "EPIC_100_verb_classes.csv").write_text("id,key,instances,category\n0,take,\"['get']\",a\n1,cut,[],b\n")
    (folder / "EPIC_100_noun_classes.csv").write_text(
        "id,key,instances,category\n0,tap,[],a\n1,onion,[],b\n2,pan,[],c\n"
    )
    (folder / "EPIC_100_train.csv").write_text(
        HEADER + line("P01_01_0", "00:00:01.00", "00:00:02.50", 1, 2) + line("P02_03_7", "01:02:03.25", "01:02:04.00")
    )
    (folder / "EPIC_100_validation.csv").write_text(
        HEADER
        + "".join(line(f"P{p:02}_11_{k}", f"00:00:0{k}.00", f"00:00:0{k}.90") for p in (1, 2, 18) for k in (1, 2))
    )
    return tmp_path


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_timestamps() -> None:
    assert seconds("01:02:03.25") == 3723.25
    with pytest.raises(ValueError):
        seconds("12.5")


def test_segments_labels_and_splits(root: Path) -> None:
    manifest = build_manifest("epic-kitchens", root)
    assert len(manifest.select(split="train")) == 2 and len(manifest.select(split="test")) == 6
    row = manifest.row(0)
    assert (row.clip_id, row.start, row.end, row.labels) == ("P01_01_0", 1.0, 2.5, {"verb": 1, "noun": 2})
    assert manifest.row(1).start == 3723.25
    assert manifest.heads == {"verb": ["take", "cut"], "noun": ["tap", "onion", "pan"]}
    assert manifest.column("participant")[-1] == "P18" and manifest.column("video")[0] == "P01_01"


def test_videos_are_found_in_every_usual_layout(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "P01/videos/P01_01.MP4", "videos/P02/P02_03.mp4", "P01_11.mkv", "EPIC-KITCHENS/P02/videos/P02_11.MP4")
    put(root, "audio/P18_11.flac", "audio/P01_01.wav", "audio/EPIC-KITCHENS/P02/videos/P02_11.flac")
    with caplog.at_level(logging.WARNING):
        manifest = build_manifest("epic-kitchens", root)
    paths = dict(zip(manifest.column("video"), manifest.column("path"), strict=True))
    assert paths == {
        "P01_01": "P01/videos/P01_01.MP4",
        "P02_03": "videos/P02/P02_03.mp4",
        "P01_11": "P01_11.mkv",
        "P02_11": "EPIC-KITCHENS/P02/videos/P02_11.MP4",
        "P18_11": "audio/P18_11.flac",
    }
    assert not caplog.records
    sound = build_manifest("epic-kitchens", root, prefer_audio_files=True)
    assert sound.row(0).path == root / "audio" / "P01_01.wav"
    extracted = dict(zip(sound.column("video"), sound.column("path"), strict=True))
    assert extracted["P02_11"] == "audio/EPIC-KITCHENS/P02/videos/P02_11.flac"  # laid out as its source


def test_missing_videos_are_counted_and_keep_their_official_place(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "P01/videos/P01_11.MP4", "P02/videos/P02_03.MP4")
    with caplog.at_level(logging.WARNING):
        manifest = build_manifest("epic-kitchens", root)
    assert "3 of 5 videos are missing" in caplog.text and "with 5 of 8 segments" in caplog.text
    assert "P01_01, P02_11, P18_11" in caplog.text
    assert manifest.row(0).path == root / "P01" / "videos" / "P01_01.MP4"


def test_without_the_training_file(root: Path) -> None:
    (root / "annotations" / "EPIC_100_train.csv").unlink()
    with pytest.raises(DataError, match=r"no EPIC_100_train\.csv in .*annotations; it is distributed at .*trial: true"):
        build_manifest("epic-kitchens", root)
    trial = build_manifest("epic-kitchens", root, trial=True)
    assert set(trial.select(split="test").column("participant")) == {"P01"}
    trial = build_manifest("epic-kitchens", root, trial=True, trial_test_participants=["P02", "P18"])
    assert set(trial.select(split="test").column("participant")) == {"P02", "P18"}
    assert set(trial.select(split="train").column("participant")) == {"P01"}
    with pytest.raises(DataError, match=r"no 'P03' .*the validation file has P01, P02, P18"):
        build_manifest("epic-kitchens", root, trial=True, trial_test_participants=["P03"])


CHALLENGE = """narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame
P33_101_0,P33,P33_101,00:00:02.851,00:00:02.86,00:00:03.87,143,193
P01_101_0,P01,P01_101,00:00:02.851,00:00:02.86,00:00:03.87,143,193
"""  # noqa: E501


def write_official_lists(folder: Path) -> None:
    (folder / "EPIC_100_tail_verbs.csv").write_text("verb\n1\n")
    (folder / "EPIC_100_tail_nouns.csv").write_text("noun\n0\n2\n")
    (folder / "EPIC_100_unseen_participant_ids_validation.csv").write_text("participant_id\nP18\n")
    (folder / "EPIC_100_unseen_participant_ids_test.csv").write_text("participant_id\nP33\n")
    (folder / "EPIC_100_test_timestamps.csv").write_text(CHALLENGE)


def test_official_lists_become_columns(root: Path) -> None:
    absent = build_manifest("epic-kitchens", root)
    assert set(absent.column("unseen")) == set(absent.column("tail_verb")) == {None}
    write_official_lists(root / "annotations")
    manifest = build_manifest("epic-kitchens", root)
    assert manifest.column("unseen") == [None, None, "no", "no", "no", "no", "yes", "yes"]  # training rows first
    assert manifest.column("tail_verb") == ["yes"] + ["no"] * 7
    assert manifest.column("tail_noun") == ["yes"] * 8  # nouns 2 and 0
    (root / "annotations" / "EPIC_100_tail_verbs.csv").write_text("verb\n1\n2\n")
    with pytest.raises(DataError, match=r"EPIC_100_tail_verbs\.csv: column 'verb': not all are classes 0\.\.1"):
        build_manifest("epic-kitchens", root)


def test_the_challenge_has_no_labels(root: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*EPIC_100_test_timestamps\.csv"):
        build_manifest("epic-kitchens", root, test="challenge")
    write_official_lists(root / "annotations")
    manifest = build_manifest("epic-kitchens", root, test="challenge")
    counts = {split: len(manifest.select(split=split)) for split in ("train", "val", "test")}
    assert counts == {"train": 2, "val": 6, "test": 2}
    test = manifest.select(split="test")
    assert test.labels("verb").tolist() == test.labels("noun").tolist() == [-1, -1]
    assert test.column("unseen") == ["yes", "no"] and test.column("tail_verb") == [None, None]
    assert (test.row(0).clip_id, test.row(0).start, test.row(0).end) == ("P33_101_0", 2.86, 3.87)
    with pytest.raises(DataError, match=r"option test must be validation or challenge, got 'chalenge'.*'challenge'"):
        build_manifest("epic-kitchens", root, test="chalenge")
    with pytest.raises(DataError, match=r"trial .* does not go with test: challenge"):
        build_manifest("epic-kitchens", root, test="challenge", trial=True)


def test_missing_and_corrupt_videos_are_found_out_by_the_scan(root: Path, tmp_path: Path) -> None:
    write_media(root / "P01" / "videos" / "P01_11.MP4", seconds=3.0, video_codec=None)
    write_media(root / "P02" / "videos" / "P02_11.MP4", seconds=1.5, video_codec=None)
    (root / "P01" / "videos" / "P01_01.MP4").write_bytes(b"not a video" * 99)
    manifest = open_data("epic-kitchens", root, cache_dir=tmp_path / "cache", workers=0)
    good, reasons = manifest.usable(audio=True)
    assert good.column("clip_id") == ["P01_11_1", "P01_11_2", "P02_11_1"]
    assert reasons == {"file not found": 3, "not a media file": 1, "segment outside file": 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("P01_01_0", "00:00:01.00", "00:00:02.50", verb=2), r"row 1 \(P01_01_0\): column 'verb_class': class 2"),
        (line("P01_01_0", "00:00:01.00", "00:00:01.00"), r"row 1 .*'stop_timestamp': 00:00:01\.00 is not after"),
        (line("P01_01_0", "noon", "00:00:01.00"), r"EPIC_100_train\.csv: row 1"),
    ],
)
def test_wrong_rows_are_named(root: Path, bad: str, message: str) -> None:
    (root / "annotations" / "EPIC_100_train.csv").write_text(HEADER + bad)
    with pytest.raises(DataError, match=message):
        build_manifest("epic-kitchens", root)


def test_absent_annotations_are_named(root: Path, tmp_path: Path) -> None:
    assert len(build_manifest("epic-kitchens", root, annotations="annotations")) == 8
    with pytest.raises(DataError, match=r"no EPIC_100_validation\.csv in .*elsewhere; .*option annotations"):
        build_manifest("epic-kitchens", root, annotations="elsewhere")
    (root / "annotations" / "EPIC_100_verb_classes.csv").unlink()
    with pytest.raises(DataError, match=r"no file .*EPIC_100_verb_classes\.csv"):
        build_manifest("epic-kitchens", root)


@pytest.mark.realdata
def test_the_official_validation_file(real_data: Path) -> None:
    folder = real_data / "annotations" / "epic-kitchens-100"
    manifest = build_manifest("epic-kitchens", folder, trial=True)
    assert len(manifest) == 9668
    assert {head: len(classes) for head, classes in manifest.heads.items()} == {"verb": 97, "noun": 300}
    first, last = manifest.row(0), manifest.row(-1)
    assert (first.clip_id, first.start, first.end, first.labels) == ("P01_11_0", 0.0, 1.89, {"verb": 0, "noun": 2})
    assert (last.clip_id, last.start, last.end, last.labels) == ("P32_10_9", 129.98, 145.73, {"verb": 2, "noun": 46})
    assert manifest.heads["verb"][0] == "take" and manifest.heads["noun"][2] == "plate"
    participants = [set(manifest.select(split=split).column("participant")) for split in ("train", "test")]
    assert participants[0] and participants[1] and not participants[0] & participants[1]


@pytest.mark.realdata
def test_the_official_tail_classes_and_unseen_participants(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    shutil.copytree(real_data / "annotations" / "epic-kitchens-100", folder)
    (folder / "EPIC_100_train.csv").write_text(HEADER + line("P01_01_0", "00:00:01.00", "00:00:02.50", 1, 2))
    test = build_manifest("epic-kitchens", tmp_path).select(split="test")
    assert len(test) == 9668
    counts = {name: test.column(name).count("yes") for name in ("unseen", "tail_verb", "tail_noun")}
    assert counts == {"unseen": 1065, "tail_verb": 1760, "tail_noun": 1900}  # counted in the files with a CSV reader
    with (folder / "EPIC_100_tail_verbs.csv").open() as file:
        tail = {int(row["verb"]) for row in csv.DictReader(file)}
    assert len(tail) == 86
    expected = ["yes" if label in tail else "no" for label in test.labels("verb").tolist()]
    assert test.column("tail_verb") == expected
