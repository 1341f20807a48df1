"""How data is divided into folds: what is tested, once each, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from avssl.config import DataConfig
from avssl.data.catalog import open_data
from avssl.data.failures import DataError
from avssl.data.folds import Fold, make_folds
from avssl.data.manifest import Manifest

SPEAKERS = ["ann", "bob", "cleo", "dan"]


def write_wav(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.random.default_rng(seed).standard_normal(1600) * 3000
    wavfile.write(path, 8000, sound.astype(np.int16))


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A small FSDD (3 digits, 4 speakers, 5 takes) and a small ESC-10 (2 classes, 5 folds, 2 clips)."""
    root = tmp_path_factory.mktemp("media")
    for digit in range(3):
        for speaker in SPEAKERS:
            for take in range(5):
                write_wav(root / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav", take)
    for number, name in ((1, "Dog bark"), (2, "Rain")):
        for fold in range(1, 6):
            for clip in "AB":
                write_wav(root / "esc10" / f"00{number} - {name}" / f"{fold}-{number}{fold}-{clip}.wav", fold)
    return root


@pytest.fixture
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def divide(media: Path, name: str, folder: Path, folds: int | str = "official", by: str | None = None, seed: int = 0):
    return make_folds(DataConfig(name, media / name), folds, by, seed, folder)


def rows_tested(fold: Fold) -> Manifest:
    data = fold.data
    return open_data(data.name, data.root, data.options).select("test")


def assert_a_partition(folds: list[Fold], count: int) -> None:
    """Every clip is tested once, and is in training otherwise."""
    ids = [clip for fold in folds for clip in rows_tested(fold).column("clip_id")]
    assert len(ids) == len(set(ids)) == count
    for fold in folds:
        everything = open_data(fold.data.name, fold.data.root, fold.data.options)
        assert len(everything.select("train")) == count - len(rows_tested(fold))


def test_official_folds_are_the_data_sets_own(media: Path, cache, tmp_path) -> None:
    folds = divide(media, "esc10", tmp_path)
    assert [fold.name for fold in folds] == [f"fold {k}" for k in range(1, 6)]
    assert [set(rows_tested(fold).column("fold")) for fold in folds] == [{str(k)} for k in range(1, 6)]
    assert_a_partition(folds, 20)
    assert [fold.data for fold in divide(media, "esc10", tmp_path, "fold=1..5")] == [fold.data for fold in folds]
    assert [fold.slug for fold in divide(media, "esc10", tmp_path, "fold=2,4")] == ["fold-2", "fold-4"]


def test_lists_of_an_option(media: Path, cache, tmp_path) -> None:
    folds = divide(media, "fsdd", tmp_path, "held_out_speakers=[[ann],[bob, dan]]")
    assert [fold.name for fold in folds] == ["held out speakers ann", "held out speakers bob dan"]
    assert {re.split("_", clip)[1] for clip in rows_tested(folds[1]).column("clip_id")} == {"bob", "dan"}


def test_groups_are_tested_once_each_by_a_head_or_a_column(media: Path, cache, tmp_path) -> None:
    folds = divide(media, "fsdd", tmp_path, by="speaker")
    assert [fold.name for fold in folds] == [f"speaker {name}" for name in SPEAKERS]
    assert_a_partition(folds, 60)
    for fold, speaker in zip(folds, SPEAKERS, strict=True):
        assert set(clip.split("_")[1] for clip in rows_tested(fold).column("clip_id")) == {speaker}
        assert fold.data.heads == ["digit"] and fold.data.clip_seconds == 1.0  # as fsdd states it
    assert [fold.name for fold in divide(media, "fsdd", tmp_path, by="take")] == [f"take {k}" for k in range(5)]


def test_groups_dealt_out_to_fewer_folds_stay_together(media: Path, cache, tmp_path) -> None:
    folds = divide(media, "fsdd", tmp_path, 2, by="speaker")
    assert_a_partition(folds, 60)
    held = [set(clip.split("_")[1] for clip in rows_tested(fold).column("clip_id")) for fold in folds]
    assert held[0] | held[1] == set(SPEAKERS) and not held[0] & held[1] and all(len(names) == 2 for names in held)


def test_random_folds_have_all_classes_and_follow_the_seed(media: Path, cache, tmp_path) -> None:
    folds = divide(media, "fsdd", tmp_path, 5)
    assert_a_partition(folds, 60)
    for fold in folds:
        assert np.bincount(rows_tested(fold).labels("digit")).tolist() == [4, 4, 4]
    again, other = divide(media, "fsdd", tmp_path, 5), divide(media, "fsdd", tmp_path, 5, seed=1)
    assert [rows_tested(fold).digest for fold in again] == [rows_tested(fold).digest for fold in folds]
    assert [rows_tested(fold).column("clip_id") for fold in other] != [
        rows_tested(fold).column("clip_id") for fold in folds
    ]


def test_random_folds_keep_clips_of_one_recording_together(media: Path, cache, tmp_path) -> None:
    """Both clips of an ESC recording, A and B."""
    folds = divide(media, "esc10", tmp_path, 5)
    assert_a_partition(folds, 20)
    for fold in folds:
        tested = rows_tested(fold)
        assert len(tested) == 4 and len(set(tested.column("recording"))) == 2
        assert np.bincount(tested.labels("sound"), minlength=2)[:2].tolist() == [2, 2]


def test_a_saved_manifest_with_a_column_fold_has_official_folds(media: Path, cache, tmp_path) -> None:
    open_data("esc10", media / "esc10", {"fold": None}).save(tmp_path / "all.parquet")
    folds = make_folds(DataConfig(str(tmp_path / "all.parquet")), "official", None, 0, tmp_path / "folds")
    assert [fold.name for fold in folds] == [f"fold {k}" for k in range(1, 6)]
    assert_a_partition(folds, 20)


def test_rows_without_a_label_or_a_group_are_left_out(cache, tmp_path) -> None:
    rows = [
        {"clip_id": str(k), "path": f"{k}.wav", "split": "pretrain" if k == 0 else "train", "has_audio": True,
         "audio_end": 1.0, "has_video": False,
         "label.kind": None if k == 1 else "ab"[k % 2], "place": None if k == 2 else "xyz"[k % 3]}
        for k in range(30)
    ]  # fmt: skip
    Manifest.from_rows(rows, tmp_path, {"kind": ["a", "b"]}).save(tmp_path / "m.parquet")
    folds = make_folds(DataConfig(str(tmp_path / "m.parquet")), "official", "place", 0, tmp_path)
    ids = {clip for fold in folds for clip in rows_tested(fold).column("clip_id")}
    assert ids == {str(k) for k in range(3, 30)}


def test_random_folds_of_several_labels_a_clip(cache, tmp_path) -> None:
    """Every fold has its share of the rare class."""
    rows = [
        {"clip_id": str(k), "path": f"{k}.wav", "split": "train", "has_audio": True,
         "audio_end": 1.0, "has_video": False,
         "label.tags": ["common", "rare"] if k % 10 == 0 else ["common"]}
        for k in range(60)
    ]  # fmt: skip
    Manifest.from_rows(rows, tmp_path, {"tags": ["common", "rare"]}).save(tmp_path / "m.parquet")
    folds = make_folds(DataConfig(str(tmp_path / "m.parquet")), 3, None, 0, tmp_path)
    assert [rows_tested(fold).labels("tags").sum(axis=0).tolist() for fold in folds] == [[20, 2]] * 3


@pytest.mark.parametrize(
    ("name", "folds", "by", "error", "told"),
    [
        ("fsdd", "official", None, DataError, "no official folds; give --folds 5"),
        ("fsdd", "official", "colour", DataError, "neither a column nor a single-label head 'colour'.*take.*speaker"),
        ("fsdd", "official", "split", DataError, "fewer than two values of 'split'"),
        ("fsdd", "held_out_speakers=[[eve],[ann]]", None, DataError, "no speaker 'eve'"),
        ("fsdd", "fold=1..5", None, DataError, "no option 'fold'"),
        ("esc10", "fold=4..6", None, DataError, "fold must be 1 to 5"),
        ("esc10", "fold=1..5", "fold", ValueError, "both divide the data"),
        ("esc10", "fold=3", None, ValueError, "names 1 fold"),
        ("esc10", "fold=3,3", None, ValueError, "a fold twice"),
        ("esc10", "fold=[1,", None, ValueError, "cannot read"),
        ("esc10", "some", None, ValueError, "neither official, nor a number"),
        ("fsdd", 1, None, ValueError, r"2\.\.4: fsdd has 4 groups of clips of one speaker"),
        ("esc10", 11, None, ValueError, r"2\.\.10: esc10 has 10 groups of clips of one recording"),
        ("fsdd", 9, "speaker", ValueError, r"2\.\.4: fsdd has 4 speaker"),
        ("fsdd", 21, None, DataError, "no class of 'digit' has as many clips as there are folds"),
    ],
)
def test_what_says_nothing_is_refused(media: Path, cache, tmp_path, name, folds, by, error, told) -> None:
    with pytest.raises(error, match=told):
        divide(media, name, tmp_path, folds, by)


def test_folds_of_other_clips_are_not_written_over(media: Path, cache, tmp_path) -> None:
    divide(media, "fsdd", tmp_path, 5)
    with pytest.raises(DataError, match="holds a fold of other clips: choose another --output"):
        make_folds(DataConfig("esc10", media / "esc10"), 5, None, 0, tmp_path)


def test_folds_of_a_list_with_absolute_paths_keep_the_users_choice(media: Path, cache, tmp_path) -> None:
    files = sorted((media / "fsdd" / "recordings").glob("*.wav"))[:20]
    lines = [f"{file},{file.name[0]},{number}" for number, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,clip_id", *lines]) + "\n")
    allowed = {"allow_absolute": True}
    for _ in range(2):  # a second call finds the first one's
        data = DataConfig(str(tmp_path / "list.csv"), options=allowed)
        folds = make_folds(data, 2, None, 0, tmp_path / "folds")
    assert [fold.data.options for fold in folds] == [allowed] * 2
    assert_a_partition(folds, 20)
