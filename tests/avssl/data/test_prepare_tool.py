import json
import os
import shlex
from pathlib import Path

import pytest
import yaml
from forked_tools import ForkedTools
from loading_samples import write_ramp_wav

from avssl.commands import main
from avssl.commands.prepare import prepare
from avssl.config import PrepareOptions
from avssl.data.catalog import find_entry, open_data
from avssl.data.manifest import Manifest

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare.py"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AVSSL_CACHE", str(folder))
    return folder


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("train/dog/1.wav", "train/cat/2.wav", "test/dog/3.wav"):
        write_ramp_wav(tmp_path / "media" / name, 0.5)
    (tmp_path / "media" / "train" / "cat" / "broken.wav").write_bytes(b"not sound" * 100)
    return tmp_path / "media"


def test_the_command_writes_manifest_and_summary(media: Path, tmp_path: Path, forked_tools: ForkedTools) -> None:
    options = ["--data", str(media), "--output", str(tmp_path / "out.parquet"), "--deep", "--workers", "1"]
    done = forked_tools.run(TOOL, options, environment=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "out.parquet")
    assert len(manifest) == 4 and manifest.usable(audio=True)[1] == {"not a media file": 1}
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["usable"] == {"audio": 3, "video": 0, "both": 0} and report["digest"] == manifest.digest
    assert report["splits"] == {"test": 1, "train": 3} and report["classes"] == {"label": 2}
    assert report["errors"] == {"not a media file": {"clips": 1, "examples": ["train/cat/broken.wav"]}}
    for told in ("splits: train 3, test 1", "classes: label 2", "1 clips: not a media file: train/cat/broken.wav",
                 "seconds a clip: median 0.50, 0.50 to 0.50"):  # fmt: skip
        assert told in done.stdout
    assert f"wrote {tmp_path / 'out.parquet'}" in done.stdout


def test_by_default_it_writes_into_runs_alone(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = sorted(media.rglob("*"))
    told: list[str] = []
    prepare(PrepareOptions(str(media), workers=0), told.append)
    assert [path.name for path in here.iterdir()] == ["runs"] and sorted(media.rglob("*")) == before
    folder = here / "runs" / "prepare-media"
    assert sorted(path.name for path in folder.iterdir()) == ["media.html", "media.json", "media.parquet"]
    assert told[-1] == "next: avssl finetune --data runs/prepare-media/media.parquet --checkpoint none"
    assert len(Manifest.load("runs/prepare-media/media.parquet")) == 4
    monkeypatch.chdir(media)
    prepare(PrepareOptions(".", workers=0, output=tmp_path / "m.parquet"), told.append)
    monkeypatch.chdir(here)
    assert main(["prepare", "--data", f"{media}/", "--workers", "0"]) == 0
    assert [path.name for path in here.iterdir()] == ["runs"]
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["prepare-media"]


def test_the_manifest_keeps_what_the_yaml_says(media: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "mine.yaml", tmp_path / "out.parquet"
    file.write_text(f"dataset: folder\nroot: {media}\nclip_seconds: 0.4\neval_clips: 3\nhead: label\n")
    assert main(["prepare", "--data", str(file), "--output", str(output), "--workers", "0"]) == 0
    entry = find_entry(str(output))
    assert (entry.name, entry.clip_seconds, entry.eval_clips, entry.head) == ("out", 0.4, 3, "label")
    assert (
        main(["prepare", "--data", str(file), "--output", str(output), "--workers", "0", "--clip-seconds", "0.2"]) == 0
    )
    assert find_entry(str(output)).clip_seconds == 0.2
    assert main(["prepare", "--data", str(file), "--output", str(output), "--clip-seconds", "0"]) == 1


def test_what_is_prepared_is_not_scanned_again(media: Path, tmp_path: Path, cache: Path) -> None:
    assert main(["prepare", "--data", str(media), "--output", str(tmp_path / "out.parquet"), "--workers", "0"]) == 0
    kept = list((cache / "manifests").iterdir())
    opened = open_data(str(media))
    assert list((cache / "manifests").iterdir()) == kept and len(kept) == 1
    assert opened.usable(audio=True)[1] == {"not a media file": 1}
    # A deep look finds more out than a run that names the data would: it stays in the manifest alone.
    assert (
        main(["prepare", "--data", str(media), "--output", str(tmp_path / "deep.parquet"), "--deep", "--workers", "0"])
        == 0
    )
    assert list((cache / "manifests").iterdir()) == kept


def test_what_the_listing_leaves_out_is_counted_in_all_reports(media: Path, tmp_path: Path, caplog) -> None:
    write_ramp_wav(media / "train" / "dog" / os.fsdecode(b"b\xe4r.wav"), 0.5)
    (media / "train" / "dog" / "again.wav").symlink_to(media / "train" / "dog" / "1.wav")
    told: list[str] = []
    prepare(PrepareOptions(str(media), tmp_path / "out.parquet", workers=0, progress=False), told.append)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["clips"] == 4
    assert report["not_listed"] == {
        "names that are not UTF-8, rename them": {"files": 1, "examples": [r"train/dog/b\xe4r.wav"]},
        "links to files that are listed already": {"files": 1, "examples": ["train/dog/again.wav"]},
    }
    line = r"1 left out of the listing, names that are not UTF-8, rename them: train/dog/b\xe4r.wav"
    assert line in told
    page = (tmp_path / "out.html").read_text()
    assert "Left out of the listing" in page and r"train/dog/b\xe4r.wav" in page
    assert "set --clip-seconds to that of your sounds" in caplog.text and "data.clip_seconds" not in caplog.text


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.wav").write_bytes(b"not sound" * 100)
    output = tmp_path / "bad.parquet"
    assert main(["prepare", "--data", str(tmp_path / "bad"), "--output", str(output), "--workers", "0"]) == 1
    told = capsys.readouterr()
    assert "1 clips: not a media file: 1.wav" in told.out
    assert told.err.startswith("error: ") and "none of 1 clips can be used" in told.err
    assert json.loads(output.with_suffix(".json").read_text())["usable"]["audio"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "gird", "--output", "x.parquet"], "no data 'gird' (did you mean 'grid'?)"),
        (["--data", "fsdd", "--root", "nowhere", "--output", "x.parquet"], "nowhere; give its place with --root"),
        (["--data", "demo", "--output", "x.csv"], "ends in .parquet"),
        (["--data", "demo", "--clip-seconds", "nan"], "--clip-seconds: must be above 0, got nan"),
        (["--data", "demo", "--sample-rate", "0", "--stats"], "--sample-rate: must be at least 1, got 0"),
        (["--data", "demo", "--workers", "-1"], "--workers: must be at least 0, got -1"),
        (["--data", "demo", "--options", "fold", "--output", "x.parquet"], "must be a mapping such as '{fold: 2}'"),
        (
            ["--data", "demo", "--options", "{sed: 1}", "--output", "x.parquet"],
            "no option 'sed' (did you mean 'seed'?)",
        ),
    ],
)
def test_errors_are_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *arguments]) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and message in told.err and told.out == ""


@pytest.mark.realdata
def test_real_odd_media_are_told_apart(real_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "odd.parquet"
    assert main(["prepare", "--data", str(real_data / "odd_media"), "--output", str(output), "--workers", "1"]) == 0
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["clips"] == 45 and report["errors"]
    reasons = Manifest.load(output).usable(audio=True, video=True)[1]
    assert reasons["no audio stream"] > 0 and reasons["no video stream"] > 0


def test_a_manifest_with_absolute_paths_is_opened_by_the_option_that_is_told(media: Path, tmp_path: Path) -> None:
    told: list[str] = []
    sets = {"sets": [{"name": str(media / "train")}, {"name": str(media / "test")}]}
    prepare(PrepareOptions("union", tmp_path / "both.parquet", options=sets, workers=0, progress=False), told.append)
    command = shlex.split(told[-1].removeprefix("next: "))
    options = yaml.safe_load(command[command.index("--data.options") + 1])
    assert len(open_data(str(tmp_path / "both.parquet"), None, options)) == 4
    with pytest.raises(
        ValueError, match=r"is absolute.*allow such paths by --data\.options '\{allow_absolute: true\}'"
    ):
        open_data(str(tmp_path / "both.parquet"))
