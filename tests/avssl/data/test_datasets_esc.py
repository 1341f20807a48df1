from collections import Counter
from pathlib import Path

import pytest

from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError

META = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
2-17367-A-10.wav,2,10,rain,True,17367,A
5-56233-A-46.wav,5,46,church_bells,False,56233,A
3-9999-B-38.wav,3,38,clock_tick,True,9999,B
"""


def authors_layout(root: Path) -> Path:
    for path in ("001 - Dog bark/1-100032-A.ogg", "002 - Rain/2-17367-A.ogg", "005 - Clock tick/3-9999-B.ogg"):
        (root / path).parent.mkdir(parents=True)
        (root / path).touch()
    return root


def esc50_layout(root: Path) -> Path:
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text(META)
    return root


def test_a_clip_that_is_there_in_two_formats_is_listed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (authors_layout(tmp_path) / "002 - Rain" / "2-17367-A.wav").touch()
    assert "002 - Rain/2-17367-A.ogg" in build_manifest("esc10", tmp_path).column("path")
    assert "ESC-10: 1 files are copies of others by their names, left out: 002 - Rain/2-17367-A.wav" in caplog.text


def test_both_layouts_give_esc10_the_same_labels(tmp_path: Path) -> None:
    (tmp_path / "ten").mkdir()
    (tmp_path / "fifty").mkdir()
    ten = build_manifest("esc10", authors_layout(tmp_path / "ten"))
    fifty = build_manifest("esc10", esc50_layout(tmp_path / "fifty"))
    assert ten.heads == fifty.heads and len(ten.heads["sound"]) == 10
    assert ten.labels("sound").tolist() == fifty.labels("sound").tolist() == [0, 1, 4]
    assert ten.column("fold") == fifty.column("fold") == ["1", "2", "3"]
    assert ten.column("recording") == fifty.column("recording") == ["100032", "17367", "9999"]
    assert fifty.row(0).path == tmp_path / "fifty" / "audio" / "1-100032-A-0.wav"


def test_esc50_has_every_category(tmp_path: Path) -> None:
    manifest = build_manifest("esc50", esc50_layout(tmp_path), fold=5)
    assert manifest.heads["sound"] == ["dog", "rain", "clock_tick", "church_bells"]
    assert manifest.labels("sound").tolist() == [0, 1, 3, 2]
    assert manifest.column("split") == ["train", "train", "test", "train"]


@pytest.mark.parametrize(("fold", "splits"), [(1, "test train train"), (3, "train train test"), (None, "train " * 3)])
def test_the_fold_is_the_test_split(tmp_path: Path, fold: int | None, splits: str) -> None:
    assert build_manifest("esc10", authors_layout(tmp_path), fold=fold).column("split") == splits.split()


def test_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ESC-10: neither .* nor meta/esc50\.csv"):
        build_manifest("esc10", tmp_path)
    with pytest.raises(DataError, match=r"ESC-50: no meta/esc50\.csv"):
        build_manifest("esc50", tmp_path)
    with pytest.raises(DataError, match="option fold must be 1 to 5 or null, got 6"):
        build_manifest("esc10", authors_layout(tmp_path), fold=6)
    esc50_layout(tmp_path)
    (tmp_path / "meta" / "esc50.csv").write_text(META.replace(",2,10,", ",two,10,"))
    with pytest.raises(DataError, match=r"esc50\.csv: row 2, column 'fold': 'two'"):
        build_manifest("esc50", tmp_path)


@pytest.mark.realdata
def test_real_esc10_has_forty_clips_a_class_in_five_even_folds(real_data: Path) -> None:
    manifest = build_manifest("esc10", real_data / "esc10", fold=2)
    assert len(manifest) == 400 and all(manifest.row(k).path.is_file() for k in range(0, 400, 40))
    pairs = Counter(zip(manifest.column("fold"), manifest.labels("sound").tolist(), strict=True))
    assert len(pairs) == 50 and set(pairs.values()) == {8}
    test = manifest.select(split="test")
    assert len(test) == 80 and set(test.column("fold")) == {"2"}
    names = manifest.heads["sound"]
    first = {manifest.row(k).path.parent.name: names[manifest.row(k).labels["sound"] or 0] for k in range(400)}
    assert first["001 - Dog bark"] == "dog" and first["010 - Fire crackling"] == "crackling_fire"
