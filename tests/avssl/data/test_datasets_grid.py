from pathlib import Path

import pytest

from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "s1" / "video").mkdir(parents=True)
    (tmp_path / "s12").mkdir()
    for name in ("s1/video/bbaf3s.mpg", "s12/swwzza.mp4", "s12/lgiv9p.mp4", "s12/holiday.mp4", "s12/bbaw3s.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def test_file_names_tell_the_words(root: Path) -> None:
    manifest = build_manifest("grid", root, test_clips=1)
    rows = {Path(row.path).stem: row for row in map(manifest.row, range(len(manifest)))}
    assert set(rows) == {"bbaf3s", "swwzza", "lgiv9p"}  # W is no letter of the corpus

    def said(name: str) -> str:
        return " ".join(manifest.heads[head][label or 0] for head, label in rows[name].labels.items())

    assert said("bbaf3s") == "bin blue at f three soon"
    assert said("swwzza") == "set white with z zero again"
    assert said("lgiv9p") == "lay green in v nine please"
    assert manifest.column("speaker") == ["s1", "s12", "s12"]


def test_the_test_split_is_drawn_with_the_seed(root: Path) -> None:
    splits = {seed: build_manifest("grid", root, test_clips=1, seed=seed).column("split") for seed in range(12)}
    assert all(sorted(split) == ["test", "train", "train"] for split in splits.values())
    assert len({tuple(split) for split in splits.values()}) == 3
    assert build_manifest("grid", root, test_clips=1, seed=5).column("split") == splits[5]


def test_errors_are_clear(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"option test_clips must lie in 0\.\.2, got 100"):
        build_manifest("grid", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"GRID: no video named like bbaf3s\.mp4"):
        build_manifest("grid", tmp_path / "empty")


@pytest.mark.realdata
def test_real_grid(real_data: Path) -> None:
    manifest = build_manifest("grid", real_data / "grid")
    assert len(manifest) == 800
    assert len(manifest.select(split="test")) == 100 and len(manifest.select(split="train")) == 700
    for head, classes in manifest.heads.items():
        assert set(manifest.labels(head).tolist()) == set(range(len(classes))), head
