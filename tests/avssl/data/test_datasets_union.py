"""Several sets as one: ids, paths, heads and labels of every row, and what is refused."""

from pathlib import Path

import pytest
import yaml
from media_factory import tone, write_media

from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.shards.encode import Settings
from avssl.data.shards.index import check_settings
from avssl.data.shards.write import write_cache


def listing(folder: Path, heads: dict, labels: list[dict], **columns) -> str:
    """A saved, unscanned manifest of clips ``0.wav`` ...; its path."""
    rows = [
        {"clip_id": str(k), "path": f"{k}.wav", "split": "train" if k else "test", **label, **columns}
        for k, label in enumerate(labels)
    ]
    path = folder / f"{folder.name}.parquet"
    Manifest.from_rows(rows, folder, heads).save(path)
    return str(path)


@pytest.fixture
def birds(tmp_path: Path) -> str:
    labels = [{"label.sound": ["crow"], "label.place": 0}, {"label.sound": ["crow", "gull"]}, {"label.sound": None}]
    return listing(tmp_path / "birds", {"sound": ["crow", "gull"], "place": ["sea"]}, labels, rating=5)


@pytest.fixture
def cars(tmp_path: Path) -> str:
    return listing(tmp_path / "cars", {"sound": ["horn", "engine"]}, [{"label.sound": 1}, {"label.sound": 0}])


def test_rows_keep_their_own_and_have_nothing_of_others(birds: str, cars: str, tmp_path: Path) -> None:
    both = build_manifest("union", sets=[{"name": birds}, {"name": cars}])
    assert both.column("clip_id") == ["birds/0", "birds/1", "birds/2", "cars/0", "cars/1"]
    assert both.column("set") == ["birds"] * 3 + ["cars"] * 2
    assert both.column("rating") == ["5"] * 3 + [None] * 2
    assert both.column("split") == ["test", "train", "train", "test", "train"]
    assert both.row(1).path == tmp_path / "birds/1.wav" and both.row(4).path == tmp_path / "cars/1.wav"
    assert both.heads == {"birds-sound": ["crow", "gull"], "place": ["sea"], "cars-sound": ["horn", "engine"]}
    assert both.multilabel == {"birds-sound"}
    assert both.labels("birds-sound").tolist() == [[1, 0], [1, 1], [-1, -1], [-1, -1], [-1, -1]]
    assert both.labels("cars-sound").tolist() == [-1, -1, -1, 1, 0]
    assert both.labels("place").tolist() == [0, -1, -1, -1, -1]


def test_heads_can_be_chosen_and_then_need_no_prefix(birds: str, cars: str) -> None:
    both = build_manifest("union", sets=[{"name": birds, "heads": ["place"]}, {"name": cars}])
    assert both.heads == {"place": ["sea"], "sound": ["horn", "engine"]}
    assert both.labels("sound").tolist() == [-1, -1, -1, 1, 0]


def test_a_head_with_the_same_classes_is_shared(cars: str, tmp_path: Path) -> None:
    (tmp_path / "vans").mkdir()
    both = build_manifest("union", sets=[{"name": cars}, {"name": cars, "root": str(tmp_path / "vans")}])
    assert both.heads == {"sound": ["horn", "engine"]}
    assert both.labels("sound").tolist() == [1, 0, 1, 0]
    assert both.column("clip_id") == ["cars/0", "cars/1", "cars-2/0", "cars-2/1"]
    assert both.row(3).path == tmp_path / "vans/1.wav"
    Manifest.load(cars).save(tmp_path / "cars-2.parquet")
    three = build_manifest("union", sets=[{"name": str(tmp_path / "cars-2.parquet")}, {"name": cars}, {"name": cars}])
    assert sorted(set(three.column("set"))) == ["cars", "cars-2", "cars-3"]


def test_a_yaml_of_ones_own_is_opened_and_scanned(tmp_path: Path) -> None:
    for folder in ("a/dog", "a/cat", "b/up"):
        (tmp_path / folder).mkdir(parents=True)
        write_media(tmp_path / folder / "1.wav", waveform=tone(0.5, 8000), sample_rate=8000,
                    video_codec=None, audio_codec="pcm_s16le")  # fmt: skip
    (tmp_path / "b/up/2.wav").write_bytes(b"no sound")
    sets = [{"name": str(tmp_path / "a")}, {"name": "folder", "root": str(tmp_path / "b")}]
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump({"dataset": "union", "options": {"sets": sets}, "clip_seconds": 0.5}))
    both = open_data(str(file), cache_dir=tmp_path / "cache", progress=False)
    assert both.column("has_audio")[:3] == [True] * 3 and len(both) == 4
    assert sum(bool(error) for error in both.column("error")) == 1
    assert {tuple(classes) for classes in both.heads.values()} == {("cat", "dog"), ("up",)}
    assert len(list((tmp_path / "cache").glob("all-*.parquet"))) == 1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "option sets must list data sets"),
        ("esc10", "option sets must list data sets"),
        (["esc10"], "union: set 1 must have a name"),
        ([{"root": "/x"}], "union: set 1 must have a name"),
        ([{"name": "esc10", "head": "sound"}], r"unknown key 'head' \(did you mean 'heads'\?\)"),
        ([{"name": "esc11"}], "no data 'esc11'"),
        ([{"name": "esc10", "root": "/nowhere"}], "no folder /nowhere"),
        ([{"name": "BIRDS", "heads": ["sounds"]}], r"has no head 'sounds' \(did you mean 'sound'\?\)"),
    ],
)
def test_what_is_wrong_is_told(birds: str, sets: list, message: str) -> None:
    if sets and isinstance(sets[0], dict) and sets[0].get("name") == "BIRDS":
        sets = [{**sets[0], "name": birds}]
    with pytest.raises(DataError, match=message):
        build_manifest("union", sets=sets)


def test_heads_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    """Labels of one would count as classes of the other."""
    sets = [
        listing(tmp_path / "a", {"sound": ["x", "y"]}, [{"label.sound": 0}]),
        listing(tmp_path / "b", {"sound": ["y", "x"], "a-sound": ["p", "q"]}, [{"label.sound": 1, "label.a-sound": 1}]),
    ]
    with pytest.raises(DataError, match="head 'sound' of set a and head 'a-sound' of set b would both be 'a-sound'"):
        build_manifest("union", sets=[{"name": name} for name in sets])


def test_a_cache_beside_a_folder_stays_readable_and_keeps_its_limits(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "scans"))
    for name, frequency in (("a/dog", 300.0), ("a/cat", 500.0), ("b/dog", 700.0)):
        write_media(tmp_path / name / "0.mp4", seconds=1.0, size=(32, 32), waveform=tone(1.0, 16000, frequency))
    for name in "ab":
        made = open_data(str(tmp_path / name), progress=False)
        write_cache(made, str(tmp_path / f"cache-{name}"), Settings(short_side=16), workers=0, progress=False)
    sets = [{"name": str(tmp_path / "cache-a")}, {"name": str(tmp_path / "b"), "options": {"split": "test"}}]
    both = open_data("union", options={"sets": sets}, progress=False)
    assert len(both.usable(audio=True, video=True)[0]) == 3 and len(set(both.files())) == 3
    items = [ClipDataset(both, clip_seconds=0.5, frame_size=16, mode="center")[0, row] for row in range(3)]
    assert [item.failures for item in items] == [[]] * 3
    with pytest.raises(DataError, match=r"data.frame_size: 24 is more than the 16 pixels of the cache \S+cache-a;"):
        check_settings(both, 24, "mean")
    caches = open_data("union", options={"sets": [sets[0], {"name": str(tmp_path / "cache-b")}]}, progress=False)
    check_settings(caches, 16, "mean")
    assert len(set(caches.files())) == 3  # dog/0.mp4 of both is not one file
