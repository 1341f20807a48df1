import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loading_samples import write_ramp_wav

from avssl.cli import parse
from avssl.config import CacheConfig, EmbedConfig, EvaluateConfig, FinetuneConfig, PretrainConfig
from avssl.data import catalog
from avssl.data.catalog import find_entry, list_data, names, open_data, read_entry
from avssl.data.failures import DataError
from avssl.data.file_stats import file_stats
from avssl.data.journal import Journal
from avssl.data.manifest import Manifest
from avssl.data.scan import scan_files, scan_rules

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no data shelf of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AVSSL_CACHE", str(folder))
    monkeypatch.delenv("AVSSL_DATA", raising=False)
    return folder


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clips of every scan that really happens (in this process, which is faster for a few files)."""
    sizes: list[int] = []
    real = catalog.scan

    def counted(manifest: Manifest, **options: object) -> Manifest:
        sizes.append(len(manifest))
        return real(manifest, **{**options, "workers": 0})  # type: ignore[arg-type]

    monkeypatch.setattr(catalog, "scan", counted)
    return sizes


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("train/dog/1.wav", "train/cat/2.wav", "test/dog/3.wav"):
        write_ramp_wav(tmp_path / "media" / name, 0.5)
    return tmp_path / "media"


def yaml_file(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


# Clip length in seconds, clips of an item that are scored, head.
PROTOCOLS = {
    "audioset": (10.0, 1, "sound"),
    "audioset-20k": (10.0, 1, "sound"),
    "demo": (1.2, 2, None),
    "demo-sources": (1.6, 1, "content"),
    "epic-kitchens": (2.0, 10, None),
    "epic-sounds": (2.0, 5, "sound"),
    "esc10": (5.0, 1, "sound"),
    "esc50": (5.0, 1, "sound"),
    "fsdd": (1.0, 1, "digit"),
    "grid": (2.56, 1, "digit"),
    "kinetics-sounds": (10.0, 1, "sound"),
    "nsynth": (4.0, 1, "family"),
    "speech-commands": (1.0, 1, "word"),
    "urbansound8k": (4.0, 1, "sound"),
    "vggsound": (10.0, 1, "sound"),
}


def test_every_known_name_has_its_protocol_in_code(tmp_path: Path) -> None:
    script = "import json\nfrom avssl.data.catalog import find_entry, names\n" + (
        "entries = [find_entry(name) for name in names()]\n"
        "print(json.dumps({e.name: (e.clip_seconds, e.eval_clips, e.head) for e in entries if e.root is None}))"
    )
    package = tmp_path / "installed"  # as from a wheel: the package and nothing beside it
    package.mkdir()
    for name in ("avssl", "mast"):
        shutil.copytree(REPOSITORY / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: tuple(values) for name, values in json.loads(done.stdout).items()} == PROTOCOLS


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig, EvaluateConfig, CacheConfig, EmbedConfig])
def test_help_names_every_data_set(
    config: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no name is broken at its hyphen
    with pytest.raises(SystemExit):
        parse(config, ["--help"])
    assert f"Names that --data knows: {', '.join(sorted(PROTOCOLS))}." in " ".join(capsys.readouterr().out.split())


def test_what_published_numbers_average_is_the_default_and_another_protocol_loses_the_name(tmp_path: Path) -> None:
    names_of = {name: find_entry(name).protocol for name in names()}
    assert names_of["epic-kitchens"] == "Auditory SlowFast" and names_of["esc50"] == "AST" and not names_of["grid"]
    assert {find_entry(name).eval_average for name in names()} == {"probabilities"}
    same = read_entry(yaml_file(tmp_path, "dataset: epic-kitchens\neval_clips: 10\n"))
    assert same.stated == find_entry("epic-kitchens").stated
    for line in ("eval_clips: 1", "clip_seconds: 1.0", "eval_average: logits"):
        assert read_entry(yaml_file(tmp_path, f"dataset: epic-kitchens\n{line}\n")).protocol == ""


def test_a_known_set_is_not_cut_to_the_length_for_unknown_data(caplog: pytest.LogCaptureFixture) -> None:
    assert {name: find_entry(name).seconds() for name in names()} == {name: p[0] for name, p in PROTOCOLS.items()}
    with caplog.at_level(logging.INFO):
        assert find_entry("vggsound").seconds(10.0) == 10.0 and not caplog.text
        assert find_entry("vggsound").seconds(2.5) == 2.5
    assert "data vggsound: clips of 2.5 s, as set; its own are 10 s" in caplog.text


def test_the_length_taken_for_unknown_data_is_in_the_log(media: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_entry(str(media)).seconds(0.5) == 0.5 and not caplog.text
    assert find_entry(str(media)).seconds() == catalog.OWN_CLIP_SECONDS
    assert "no length of a clip is stated: 4 s are taken; set data.clip_seconds" in caplog.text


def test_a_yaml_of_a_known_set_has_its_protocol_but_for_what_it_gives(tmp_path: Path) -> None:
    plain = read_entry(yaml_file(tmp_path, "dataset: epic-sounds\n"))
    assert (plain.clip_seconds, plain.eval_clips, plain.head) == PROTOCOLS["epic-sounds"]
    changed = read_entry(yaml_file(tmp_path, "dataset: grid\nclip_seconds: 1.5\nhead:\noptions: {seed: 3}\n"))
    assert (changed.clip_seconds, changed.eval_clips, changed.head) == (1.5, 1, None)
    assert changed.options == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "dataset: folder\nclip_second: 2\n",
            r"mine\.yaml: unknown key 'clip_second' \(did you mean 'clip_seconds'\?\)",
        ),
        ("clip_seconds: 2\n", r"mine\.yaml: key 'dataset' is missing"),
        ("dataset: foldr\n", r"no data set 'foldr' \(did you mean 'folder'\?\)"),
        ("dataset: folder\nclip_seconds: long\n", r"mine\.yaml: key 'clip_seconds' must be int or float, got 'long'"),
        ("dataset: folder\nclip_seconds: 0\n", r"mine\.yaml: key 'clip_seconds' must be positive"),
        ("dataset: folder\neval_average: max\n", r"key 'eval_average' must be probabilities or logits, got 'max'"),
        ("dataset: folder\neval_clips: 0\n", r"mine\.yaml: key 'eval_clips' must be positive"),
        ("dataset: folder\noptions: [a]\n", r"mine\.yaml: key 'options' must be dict"),
        ("- folder\n", r"mine\.yaml: must hold keys and values"),
        ("dataset: [folder\n", r"mine\.yaml: not YAML"),
    ],
)
def test_wrong_yaml_is_told_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_entry(yaml_file(tmp_path, text))


def test_unknown_data_lists_what_there_is() -> None:
    with pytest.raises(DataError, match=r"no data 'gird' \(did you mean 'grid'\?\): give one of .*demo, "):
        open_data("gird")


def test_a_media_file_is_no_list(media: Path) -> None:
    with pytest.raises(DataError, match=r"1\.wav: is one media file: give its folder, or a \.csv that lists it"):
        find_entry(str(media / "train" / "dog" / "1.wav"))


def test_a_folder_with_the_name_of_a_known_set_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "grid"):
        write_ramp_wav(tmp_path / name / "dog" / "1.wav", 0.5)
    list_data("demo", options={"pretrain": 1, "train_per_class": 1, "test_per_class": 1})
    assert "data demo: the known set, not the folder of that name, which is ./demo" in caplog.text
    assert list_data("./demo")[0].column("path") == ["dog/1.wav"]
    with pytest.raises(DataError, match=r"give --data\.root grid, root"):
        list_data("grid")


def test_the_root_comes_from_argument_yaml_or_shelf(
    media: Path, tmp_path: Path, scans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"data 'fsdd' needs .*--data\.root FOLDER.*AVSSL_DATA"):
        open_data("fsdd")
    configs = tmp_path / "configs"
    bare = str(yaml_file(configs, "dataset: folder\n", "media.yaml"))
    assert open_data(bare, root=media).root == media
    monkeypatch.setenv("AVSSL_DATA", str(tmp_path))
    assert open_data(bare).root == media
    monkeypatch.setenv("SHELF", str(tmp_path))
    for root in ("../media", "${SHELF}/media", str(media)):
        rooted = yaml_file(configs, f"dataset: folder\nroot: {root}\n", "rooted.yaml")
        assert open_data(str(rooted)).root == media
    monkeypatch.setenv("AVSSL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere.* is not there"):
        open_data(bare)


def test_options_of_the_call_go_over_the_yamls(media: Path, tmp_path: Path, scans: list[int]) -> None:
    write_ramp_wav(media / "x" / "4.wav", 0.5)
    file = str(yaml_file(tmp_path, f"dataset: folder\nroot: {media}\noptions: {{split: test}}\n"))
    assert open_data(file).column("split").count("test") == 2
    assert open_data(file, options={"split": "val"}).column("split").count("val") == 1


def test_a_folder_a_csv_and_a_manifest_can_be_named_directly(media: Path, tmp_path: Path, scans: list[int]) -> None:
    folder = open_data(str(media))
    assert len(folder) == 3 and folder.heads == {"label": ["cat", "dog"]}
    assert folder.row(0).duration == pytest.approx(0.5) and folder.row(0).has_audio
    (media / "list.csv").write_text("path,label\ntrain/dog/1.wav,a\n")
    listed = open_data(str(media / "list.csv"))
    assert len(listed) == 1 and listed.heads == {"label": ["a"]} and listed.root == media
    folder.save(tmp_path / "saved.parquet")
    count = len(scans)
    saved = open_data(str(tmp_path / "saved.parquet"))
    assert saved.digest == folder.digest and len(scans) == count
    with pytest.raises(DataError, match="a saved manifest takes no options but allow_absolute, got split"):
        open_data(str(tmp_path / "saved.parquet"), options={"split": "test"})
    (tmp_path / "junk.parquet").write_text("junk")
    with pytest.raises(DataError, match=r"junk\.parquet: not a Parquet file"):
        open_data(str(tmp_path / "junk.parquet"))


def test_a_csv_elsewhere_takes_a_root(media: Path, tmp_path: Path, scans: list[int]) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("path\ntest/dog/3.wav\n")
    assert open_data(str(tmp_path / "lists" / "list.csv"), root=media).row(0).path == media / "test" / "dog" / "3.wav"


def test_data_are_scanned_once_until_they_change(media: Path, cache: Path, scans: list[int]) -> None:
    first = open_data(str(media))
    assert open_data(str(media)).digest == first.digest and scans == [3]
    write_ramp_wav(media / "train" / "dog" / "1.wav", 0.75)  # changed
    changed = open_data(str(media))
    assert scans == [3, 3] and changed.digest != first.digest
    write_ramp_wav(media / "train" / "dog" / "4.wav", 0.5)  # added
    assert len(open_data(str(media))) == 4 and scans == [3, 3, 4]
    (media / "train" / "dog" / "4.wav").unlink()
    assert len(open_data(str(media))) == 3 and scans == [3, 3, 4, 3]
    assert len(list((cache / "manifests").iterdir())) == 1, "scans that are out of date are removed"
    assert open_data(str(media), options={"split": "test"}) and open_data(str(media))
    assert scans == [3, 3, 4, 3, 3], "other options are another entry and leave this one alone"


def test_a_damaged_scan_is_made_again(
    media: Path, cache: Path, scans: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = open_data(str(media))
    (kept,) = (cache / "manifests").iterdir()
    kept.write_bytes(kept.read_bytes()[:-200])
    assert open_data(str(media)).digest == first.digest and scans == [3, 3]
    assert f"{kept}: not a Parquet file, or damaged" in caplog.text and "scanned again" in caplog.text
    assert open_data(str(media)).digest == first.digest and scans == [3, 3]


def test_a_killed_scan_goes_on_after_other_files_changed(
    media: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = catalog.scan

    def killed(manifest: Manifest, journal: Path, **options: object) -> Manifest:
        with Journal(journal, scan_rules(None)) as kept:
            scan_files(manifest.take([0, 1]), 0, False, None, kept)
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "scan", killed)
    with pytest.raises(KeyboardInterrupt):
        open_data(str(media))
    write_ramp_wav(media / "train" / "dog" / "4.wav", 0.5)  # a download that goes on, say
    monkeypatch.setattr(catalog, "scan", real)
    with caplog.at_level(logging.INFO):
        assert len(open_data(str(media), workers=0)) == 4
    assert "continuing after 2 results" in caplog.text
    assert [file.suffix for file in (cache / "manifests").iterdir()] == [".parquet"]


def test_stats_of_many_files_come_in_their_order(tmp_path: Path) -> None:
    names = [f"{k}.bin" for k in range(1500)]
    for k, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * (k % 7))
    stats = file_stats(tmp_path, [*names, "gone", str(tmp_path / "6.bin")])
    assert [stat and stat[0] for stat in stats] == [*(k % 7 for k in range(1500)), None, 6]
    assert stats[6] == stats[-1] == (6, (tmp_path / "6.bin").stat().st_mtime_ns)
    assert file_stats(tmp_path, []) == []


def test_unusable_clips_are_told_and_kept(media: Path, scans: list[int], caplog: pytest.LogCaptureFixture) -> None:
    (media / "train" / "dog" / "bad.wav").write_bytes(b"not sound" * 100)
    with caplog.at_level(logging.WARNING):
        manifest = open_data(str(media))
    assert len(manifest) == 4 and "3 of 4 clips can be used: not a media file x1" in caplog.text
    usable, reasons = manifest.usable(audio=True)
    assert len(usable) == 3 and reasons == {"not a media file": 1}


def test_nothing_usable_is_an_error(tmp_path: Path, scans: list[int]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.wav").write_bytes(b"not sound" * 100)
    with pytest.raises(DataError, match=r"none of 1 clips can be used: not a media file x1; the first: .*1\.wav"):
        open_data(str(tmp_path / "bad"))


def test_the_demo_is_made_on_first_use(cache: Path, scans: list[int]) -> None:
    manifest = open_data("demo", options={"pretrain": 2, "train_per_class": 1, "test_per_class": 1})
    assert manifest.root.is_relative_to(cache)
    assert len(manifest.select(split="pretrain")) == 2
    assert all(manifest.row(k).has_audio and manifest.row(k).has_video for k in range(len(manifest)))


@pytest.mark.realdata
def test_real_esc10_is_scanned_through_its_shelf(
    real_data: Path, monkeypatch: pytest.MonkeyPatch, scans: list[int]
) -> None:
    monkeypatch.setenv("AVSSL_DATA", str(real_data))
    manifest = open_data("esc10", options={"fold": 4})
    assert len(manifest) == 400 and manifest.coverage(audio=True)["share"] == 1.0
    assert len(manifest.select(split="test")) == 80
    assert set(manifest.column("sample_rate")) == {44100} and set(manifest.column("has_video")) == {False}


def test_who_waited_for_another_scan_takes_it(media: Path, scans: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    hold = catalog.hold

    @contextlib.contextmanager
    def after_another(*args: Any, **options: Any) -> Iterator[None]:
        monkeypatch.setattr(catalog, "hold", hold)
        open_data(str(media))
        with hold(*args, **options):
            yield

    monkeypatch.setattr(catalog, "hold", after_another)
    assert len(open_data(str(media))) == 3 and scans == [3]
