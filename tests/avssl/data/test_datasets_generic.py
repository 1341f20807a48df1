import errno
import inspect
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from avssl.data.datasets import available, build_manifest, get_dataset, register_dataset
from avssl.data.datasets.layout import class_names, media_files, read_table
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.strata import row_groups


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def table(root: Path, text: str, name: str = "index.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root


def test_the_registry_knows_every_family() -> None:
    assert set(available()) >= {"folder", "csv", "demo", "esc10", "esc50", "fsdd", "grid", "epic-kitchens"}
    for name in available():
        assert inspect.getdoc(get_dataset(name).build), name


@pytest.mark.parametrize(
    ("protocol", "error", "message"),
    [
        ({}, TypeError, "clip_seconds"),
        ({"clip_seconds": 2.0}, TypeError, "eval_clips"),
        ({"clip_seconds": 0.0, "eval_clips": 1, "head": None}, ValueError, "clip_seconds must be positive or None"),
        ({"clip_seconds": 2.0, "eval_clips": 0, "head": None}, ValueError, "eval_clips must be at least 1"),
        ({"clip_seconds": 2.0, "eval_clips": 1, "head": None, "options": {"x": 1}}, ValueError, "no option x"),
    ],
)
def test_a_data_set_without_a_whole_protocol_is_not_registered(
    protocol: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        register_dataset("unheard", **protocol)(lambda root: Manifest.from_rows([], root))
    assert "unheard" not in available()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("esc11", {}, r"no data set 'esc11' \(did you mean 'esc10'\?\)"),
        ("esc10", {"folds": 1}, r"no option 'folds' \(did you mean 'fold'\?\); its options: fold"),
        ("grid", {"test_clips": "many"}, r"data set 'grid': .*'many'"),
    ],
)
def test_wrong_names_and_options_are_told(tmp_path: Path, name: str, options: dict, message: str) -> None:
    touch(tmp_path, "bbaf3s.mp4", "bbaf4p.mp4")
    with pytest.raises(DataError, match=message):
        build_manifest(name, tmp_path, **options)


def test_a_missing_root_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere; give its place with --data\.root"):
        build_manifest("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"give --data\.root"):
        build_manifest("folder")


def test_media_files_are_found_whatever_their_case_and_hidden_ones_are_not(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/x.MP4", "a/y.wav", "a/notes.txt", ".hidden/z.wav", "a/.z.wav", "a/._y.wav", "c.OGV", "a/.DS_Store"
    )
    assert media_files(tmp_path) == ["a/y.wav", "b/x.MP4", "c.OGV"]


def test_a_name_that_is_not_utf8_costs_that_file_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "dog/1.wav", os.fsdecode(b"dog/b\xe4r.wav"), os.fsdecode(b"k\xe4fer/2.wav"), "bär/3.wav")
    manifest = build_manifest("folder", tmp_path)
    assert manifest.column("path") == ["bär/3.wav", "dog/1.wav"] and manifest.heads == {"label": ["bär", "dog"]}
    assert r"2 left out: names that are not UTF-8, rename them: dog/b\xe4r.wav, k\xe4fer/2.wav" in caplog.text
    manifest.save(tmp_path / "saved.parquet")


def test_a_linked_class_folder_does_not_rename_the_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "cat/1.wav", "dog/2.wav", "Bird/3.wav")
    (tmp_path / "Bird" / "loop").symlink_to("../cat")  # comes first in the alphabet
    (tmp_path / "Alias").symlink_to("dog")
    manifest = build_manifest("folder", tmp_path)
    assert manifest.column("path") == ["Bird/3.wav", "cat/1.wav", "dog/2.wav"]
    assert manifest.heads == {"label": ["Bird", "cat", "dog"]}
    assert "2 left out: links to folders that are listed already: Alias, Bird/loop" in caplog.text


def test_links_that_lead_back_end_and_others_are_followed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = touch(tmp_path / "root", "dog/1.wav")
    touch(tmp_path / "elsewhere", "cat/2.wav", "cat/more/3.wav", "pool/4.wav")
    (root / "dog" / "up").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "self.wav").symlink_to("self.wav")
    (root / "gone.wav").symlink_to("nowhere.wav")  # listed, for the scan to say that it is missing
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "cat2").symlink_to(tmp_path / "elsewhere" / "cat" / "more")
    (root / "dog" / "same.wav").symlink_to("1.wav")
    for name in ("bird", "fowl"):
        (root / name).mkdir()
        (root / name / "4.wav").symlink_to(tmp_path / "elsewhere" / "pool" / "4.wav")
    assert media_files(root) == ["bird/4.wav", "cat/2.wav", "cat/more/3.wav", "dog/1.wav", "gone.wav", "self.wav"]
    assert "2 left out: links to folders that are listed already: cat2, dog/up" in caplog.text
    assert "2 left out: links to files that are listed already: dog/same.wav, fowl/4.wav" in caplog.text


def test_a_folder_that_may_not_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "dog/1.wav", "cat/2.wav")
    real = os.scandir

    def scandir(path: str) -> object:  # root, as which tests may run, may read everything
        if path.endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert media_files(tmp_path) == ["dog/1.wav"]
    assert "1 left out: folders that cannot be read (Permission denied): cat/" in caplog.text


def test_names_of_classes_keep_what_they_hold_but_for_unicodes_form(tmp_path: Path) -> None:
    decomposed, composed = (unicodedata.normalize(form, "Café") for form in ("NFD", "NFC"))
    touch(tmp_path, 'dog, "big"/1.wav', "dog /2.wav", "dog/3.wav", f"{decomposed}/4.wav", f"{composed}/5.wav")
    manifest = build_manifest("folder", tmp_path)
    assert manifest.heads == {"label": [composed, "dog", "dog ", 'dog, "big"']}
    assert sorted(manifest.labels("label").tolist()) == [0, 0, 1, 2, 3] and f"{decomposed}/4.wav" in manifest.column(
        "path"
    )


def test_folder_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.wav", "dog/2.mp4", "cat/1.wav", "animals/cat/9.wav", "stray.wav")
    manifest = build_manifest("folder", tmp_path)
    assert manifest.heads == {"label": ["cat", "dog"]}
    found = dict(zip(manifest.column("path"), manifest.labels("label").tolist(), strict=True))
    assert found == {"dog/1.wav": 1, "dog/2.mp4": 1, "cat/1.wav": 0, "animals/cat/9.wav": 0, "stray.wav": -1}
    assert set(manifest.column("split")) == {"train"}


def test_folder_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/dog/1.wav", "Validation/dog/2.wav", "test/cat/3.wav", "pretrain/4.mp4", "other/5.wav")
    manifest = build_manifest("folder", tmp_path, split="test")
    found = {row.path.name: (row.split, row.labels["label"]) for row in map(manifest.row, range(5))}
    assert manifest.heads == {"label": ["cat", "dog", "other"]}
    assert found == {
        "1.wav": ("train", 1),
        "2.wav": ("val", 1),
        "3.wav": ("test", 0),
        "4.mp4": ("pretrain", None),
        "5.wav": ("test", 2),
    }


@pytest.mark.parametrize(
    "form", ["{split}/{name}", "all/{split}/{name}", "all/sounds/{split}/{name}", "{name}/{split}", "x/{name}/{split}"]
)
def test_splits_are_found_where_people_put_them(tmp_path: Path, form: str) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            touch(tmp_path, f"{form.format(split=split, name=name)}/{split}-{name}.wav")
    manifest = build_manifest("folder", tmp_path)
    rows = [manifest.row(k) for k in range(4)]
    assert manifest.heads == {"label": ["cat", "dog"]}
    assert {(row.split, row.path.stem) for row in rows} == {
        (split, f"{split}-{name}") for split in ("train", "test") for name in ("cat", "dog")
    }
    assert all(row.path.stem.endswith(manifest.heads["label"][row.labels["label"]]) for row in rows)


def test_what_may_be_a_class_or_a_split_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vehicles = touch(tmp_path / "vehicles", "bus/1.wav", "train/2.wav", "train/3.wav")
    assert build_manifest("folder", vehicles).labels("label").tolist() == [0, -1, -1]
    assert "files without a class, in no folder of a class: 2 of split train" in caplog.text
    caplog.clear()
    below = touch(tmp_path / "below", "bus/1.wav", "cars/test/2.wav")
    assert build_manifest("folder", below).heads == {"label": ["bus", "test"]}
    assert "folders named like splits are taken for classes: test" in caplog.text
    caplog.clear()
    build_manifest("folder", touch(tmp_path / "good", "train/bus/1.wav", "train/train/2.wav", "pretrain/3.mp4"))
    build_manifest("folder", touch(tmp_path / "one", "bus/1.wav"))
    assert not caplog.text


def test_a_flat_folder_has_no_head(tmp_path: Path) -> None:
    manifest = build_manifest("folder", touch(tmp_path, "1.mp4", "2.mp4"))
    assert manifest.heads == {} and len(manifest) == 2


def test_a_folder_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no media file under .*--data\.root"):
        build_manifest("folder", touch(tmp_path, "notes.txt"))


def test_csv_with_all_columns(tmp_path: Path) -> None:
    text = 'path,start,end,label,split\n"a,b.wav",,,dog,train\nv.mp4,1.5,3,cat,test\nv.mp4,4,,,pretrain\n'
    manifest = build_manifest("csv", table(tmp_path, "\ufeff" + text))
    assert manifest.heads == {"label": ["cat", "dog"]}
    rows = [manifest.row(k) for k in range(3)]
    assert [row.path.name for row in rows] == ["a,b.wav", "v.mp4", "v.mp4"]
    assert [(row.start, row.end, row.split) for row in rows] == [
        (None, None, "train"), (1.5, 3.0, "test"), (4.0, None, "pretrain"),
    ]  # fmt: skip
    assert [row.labels["label"] for row in rows] == [1, 0, None]
    assert [row.clip_id for row in rows] == ["a,b.wav", "v.mp4@1.5-3", "v.mp4@4-"]


def test_csv_with_other_column_names(tmp_path: Path) -> None:
    table(tmp_path, "file;from;to;verb;noun;id\nv.mp4;0;2;10;x;one\nv.mp4;2;4;9;y;two\n", "list.csv")
    options = {"path": "file", "start": "from", "end": "to", "label": ["verb", "noun"], "clip_id": "id"}
    manifest = build_manifest("csv", tmp_path, file="list.csv", delimiter=";", **options)
    assert manifest.heads == {"verb": ["9", "10"], "noun": ["x", "y"]}
    assert manifest.column("clip_id") == ["one", "two"] and manifest.labels("verb").tolist() == [1, 0]
    assert manifest.row(1).start == 2.0 and manifest.row(1).split == "train"


def test_csv_with_nothing_but_paths(tmp_path: Path) -> None:
    manifest = build_manifest("csv", table(tmp_path, "path\na.wav\nb.wav\n"))
    assert manifest.heads == {} and manifest.row(0).labels == {} and manifest.row(0).end is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_as_programs_write_it(tmp_path: Path, delimiter: str, newline: str) -> None:
    lines = [
        "Path, LABEL ,Split,speaker,duration",
        "a.wav, dog ,Validation,ann,9",
        '"b,;c.wav",dog,TEST,,9',
        "c.wav, ,,bob,9",
    ]
    text = newline.join(lines).replace(",", delimiter).replace(f'"b{delimiter};c', '"b,;c') + newline
    (tmp_path / "index.csv").write_bytes(("\ufeff" + text).encode())
    manifest = build_manifest("csv", tmp_path)
    assert manifest.column("path") == ["a.wav", "b,;c.wav", "c.wav"] and manifest.heads == {"label": ["dog"]}
    assert manifest.column("split") == ["val", "test", ""] and manifest.labels("label").tolist() == [0, 0, -1]
    assert manifest.column("speaker") == ["ann", None, "bob"] and manifest.column("duration") == [None] * 3


def test_a_column_of_voices_is_a_group_of_what_is_held_out(tmp_path: Path) -> None:
    lines = [f"{k}.wav,{'dog' if k % 2 else 'cat'},{'abc'[k // 4]}" for k in range(12)]
    manifest = build_manifest("csv", table(tmp_path, "path,label,Speaker_ID\n" + "\n".join(lines) + "\n"))
    groups, shared = row_groups(manifest)
    assert shared == ["speaker"] and groups.tolist() == [k // 4 for k in range(12)]


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accents_are_found_in_either_form(tmp_path: Path, listed: str, stored: str) -> None:
    touch(tmp_path, unicodedata.normalize(stored, "Café/é.wav"))
    table(tmp_path, "path\n" + unicodedata.normalize(listed, "Café/é.wav") + "\nCafé/gone.wav\n")
    manifest = build_manifest("csv", tmp_path)
    assert manifest.row(0).path.is_file() and manifest.column("path")[1] == "Café/gone.wav"


def test_csv_with_several_labels_in_a_cell(tmp_path: Path) -> None:
    text = "path,tags\na.wav,dog | bark\nb.wav,dog\nc.wav,|\nd.wav,\n"
    manifest = build_manifest("csv", table(tmp_path, text), label="tags", separator="|")
    assert manifest.heads == {"tags": ["bark", "dog"]} and manifest.multilabel == {"tags"}
    assert manifest.labels("tags").tolist() == [[1, 1], [0, 1], [0, 0], [-1, -1]]


def test_a_row_that_is_not_utf8_costs_that_row_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "index.csv").write_bytes(
        b"path,label\na.wav,dog\nb\xe4r.wav,bear\nc.wav,k\xe4fer\nb\xc3\xa4r.wav,dog\n"
    )
    manifest = build_manifest("csv", tmp_path)
    assert manifest.column("path") == ["a.wav", "bär.wav"] and manifest.heads == {"label": ["dog"]}
    assert r"2 of 4 rows left out, they are not UTF-8: row 2 (b\xe4r.wav), row 3 (k\xe4fer)" in caplog.text


def test_a_folder_whose_own_name_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    root = touch(tmp_path / os.fsdecode(b"k\xe4fer"), "dog/1.wav")
    with pytest.raises(DataError, match=r"k\\xe4fer: the folder's name is not UTF-8; rename it"):
        build_manifest("folder", root)


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    columns = {"path": ["a.wav", "b.wav"], "start": [0.5, None], "label": [7, 10]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    manifest = build_manifest("csv", tmp_path, file="list.parquet")
    assert manifest.heads == {"label": ["7", "10"]} and manifest.column("start") == [0.5, None]


def test_segments_that_differ_in_a_hundredth_of_a_second_after_hours_are_two_clips(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("path,start,end\na.wav,10000.11,10002\na.wav,10000.12,10002\n")
    manifest = build_manifest("csv", tmp_path)
    assert manifest.column("start") == [10000.11, 10000.12]
    assert manifest.column("clip_id") == ["a.wav@10000.1-10002", "a.wav@10000.12-10002.0"]
    (tmp_path / "index.csv").write_text("path,start,end\na.wav,10000.11,10002\na.wav,10000.11,10002\n")
    with pytest.raises(DataError, match="row 2 repeats row 1"):
        build_manifest("csv", tmp_path)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file\na.wav\n", {}, r"index\.csv: no column 'path'; there are file"),
        ("path,start\na.wav,1\nb.wav,soon\n", {}, r"index\.csv: row 2, column 'start': 'soon' is not a number"),
        ("path,start\na.wav,-1\n", {}, r"index\.csv: row 1, column 'start': -1\.0 is negative"),
        ("path,start,end\na.wav,2,2\n", {}, r"index\.csv: row 1, column 'end': 2\.0 does not lie after"),
        ("path,split\na.wav,train\nb.wav,dev\n", {}, r"index\.csv: row 2, column 'split': 'dev' is none of"),
        ("path,x\na.wav,1\n,2\n", {}, r"index\.csv: row 2, column 'path': empty"),
        ("path,x\na.wav,1\nb.wav,1\na.wav,2\n", {}, r"index\.csv: row 3 repeats row 1, clip 'a\.wav'"),
        ("path\na.wav\n", {"label": "class"}, r"index\.csv: no column 'class'"),
        ("path,x\na.wav,1,2\n", {}, r"index\.csv: cannot be read as a table"),
        ("path\n../a.wav\n", {}, r"index\.csv: .*leaves the root"),
        ("path\n../a.wav\n", {"allow_absolute": True}, r"index\.csv: .*leaves the root"),
        (
            "path\na.wav\n/b/c.wav\n",
            {},
            r"index\.csv: row 2, column 'path': '/b/c\.wav' is absolute; .*"
            r"--data\.options '\{allow_absolute: true\}'$",
        ),
        ("path\n", {}, r"index\.csv: no row"),
        ("path,end\na.wav,inf\n", {}, r"index\.csv: row 1, column 'end': 'inf' is not a number"),
        ("path,Label,LABEL\na.wav,1,2\n", {}, r"index\.csv: which column is 'label': 'Label' or 'LABEL'\? rename one"),
        ("path,x,x\na.wav,1,2\n", {}, r"index\.csv: two columns are named 'x'; rename one"),
        ("path\na.wav\n", {"separator": ""}, r"option separator must be a sign"),
    ],
)
def test_csv_errors_name_file_row_and_column(tmp_path: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_manifest("csv", table(tmp_path, text), **options)


def test_absolute_paths_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    media = touch(tmp_path / "elsewhere", "a.wav") / "a.wav"
    manifest = build_manifest("csv", table(tmp_path, f"path\n{media}\n"), allow_absolute=True)
    assert manifest.allow_absolute and manifest.row(0).path == media


def test_a_link_of_the_users_own_may_leave_the_root(tmp_path: Path) -> None:
    media = touch(tmp_path / "elsewhere", "a.wav") / "a.wav"
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.wav").symlink_to(media)
    manifest = build_manifest("csv", table(root, "path\nlink.wav\n"))
    assert not manifest.allow_absolute and manifest.row(0).path.resolve() == media


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*index\.csv"):
        build_manifest("csv", tmp_path)


def test_cells_stay_text_and_long_tables_too(tmp_path: Path) -> None:
    rows = [f"{k:05},007\n" for k in range(200_000)]  # longer than a block, whose types would be guessed
    table(tmp_path, "path,label\n" + "".join(rows) + "last,seven\n")
    cells = read_table(tmp_path / "index.csv")
    assert cells["path"][123] == "00123" and set(cells["label"]) == {"007", "seven"}


def test_lists_in_a_cell_are_no_class(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"path": ["a.wav"], "label": [["dog", "cat"]]}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"index\.parquet: column 'label' holds list<.*Manifest\.from_rows"):
        build_manifest("csv", tmp_path, file="index.parquet")


def test_class_names_are_ordered_by_number_or_alphabet() -> None:
    assert class_names(["10", "9", "9"]) == ["9", "10"]
    assert class_names(["b", "10", "a"]) == ["10", "a", "b"]
