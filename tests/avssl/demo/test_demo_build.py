"""The demo set on disk: same bytes from the same recipe, whole or absent, honest about labels, clear when it fails."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avssl.data.manifest import Manifest
from avssl.demo import CLASSES, DemoError, build_demo, demo_rows, ensure_demo
from avssl.demo import build as demo_build
from avssl.demo.sounds import FPS, FRAME_SIZE, NUM_FRAMES, NUM_SAMPLES, SAMPLE_RATE

SMALL = {"pretrain": 3, "train_per_class": 1, "test_per_class": 1, "workers": 0}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo(tmp_path_factory.mktemp("cache") / "demo", **SMALL)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_also_in_worker_processes(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_build, "IN_PROCESS", 0)
    again = build_demo(tmp_path / "demo", **{**SMALL, "workers": 2})
    assert digests(again) == digests(demo)


def test_another_seed_gives_other_clips(demo: Path, tmp_path: Path) -> None:
    sizes = {"pretrain": 2, "train_per_class": 0, "test_per_class": 0, "workers": 0}
    other = digests(build_demo(tmp_path / "other", seed=1, **sizes))
    assert not set(other.values()) & set(digests(demo).values())


def test_rows_make_a_manifest_in_which_pretraining_clips_have_no_label(demo: Path) -> None:
    rows, heads = demo_rows(demo)
    manifest = Manifest.from_rows(rows, demo, heads)
    assert len(CLASSES) >= 10
    assert heads == {"event": list(CLASSES)}
    assert (manifest.select(split="pretrain").labels("event") == -1).all()
    for split in ("train", "test"):
        assert sorted(manifest.select(split=split).labels("event")) == list(range(len(CLASSES)))
    unlabelled = [row for row in json.loads((demo / "demo.json").read_text())["clips"] if row["split"] == "pretrain"]
    assert all(set(row) == {"clip_id", "path", "split", "bytes"} for row in unlabelled)
    truth = json.loads((demo / "truth.json").read_text())
    assert set(truth["pretrain-0000"]) == {"pitch", "tempo", "loudness", "onsets", "body"}


def test_every_file_decodes_to_full_length_pictures_and_sound(demo: Path) -> None:
    for row in demo_rows(demo)[0]:
        path = str(demo / row["path"])
        with av.open(path) as container:
            assert container.streams.video[0].average_rate == FPS
            frames = list(container.decode(video=0))
        assert [(frame.width, frame.height) for frame in frames] == [(FRAME_SIZE, FRAME_SIZE)] * NUM_FRAMES
        with av.open(path) as container:
            stream = container.streams.audio[0]
            assert (stream.rate, stream.channels, stream.start_time) == (SAMPLE_RATE, 1, 0)
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
        assert len(sound) >= NUM_SAMPLES
        assert sound.std() > 0.005


def test_a_finished_set_is_reused_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    sizes = {"pretrain": 2, "train_per_class": 0, "test_per_class": 0, "workers": 0}
    root = ensure_demo(tmp_path / "demo", **sizes)
    before, stamp = digests(root), root.stat().st_mtime_ns
    assert ensure_demo(root, **sizes).stat().st_mtime_ns == stamp
    clip = root / "pretrain" / "0001.mp4"
    clip.write_bytes(clip.read_bytes()[:100])
    with pytest.raises(DemoError, match="no complete demo set"):
        demo_rows(root)
    assert digests(ensure_demo(root, **sizes)) == before
    marker = root / "demo.json"
    marker.write_text(marker.read_text().replace('"pretrain-0001"', '"pretrain-0003"'))  # a flipped bit
    assert digests(ensure_demo(root, **sizes)) == before
    marker.unlink()
    assert digests(ensure_demo(root, **sizes)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_build_that_was_stopped_goes_on_with_what_it_had_made(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = demo_build.write_mp4, []

    def interrupted(path: Path, frames: np.ndarray, audio: np.ndarray, **rates: float) -> None:
        if path.name == "0002.mp4":
            raise KeyboardInterrupt
        write(path, frames, audio, **rates)

    monkeypatch.setattr(demo_build, "write_mp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path / "demo", **SMALL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".demo-")
    with (left / demo_build.JOURNAL).open("a") as journal:
        journal.write('[{"clip_id": "torn')
    (left / "pretrain" / "0001.mp4").write_bytes(b"damaged since")

    def counted(path: Path, frames: np.ndarray, audio: np.ndarray, **rates: float) -> None:
        written.append(path.name)
        write(path, frames, audio, **rates)

    monkeypatch.setattr(demo_build, "write_mp4", counted)
    build_demo(tmp_path / "demo", **SMALL)
    assert written[:2] == ["0001.mp4", "0002.mp4"] and len(written) == len(demo_rows(demo)[0]) - 1
    assert digests(tmp_path / "demo") == digests(demo)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_what_was_stopped_is_not_taken_for_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **rates: float) -> None:
        raise KeyboardInterrupt

    sizes = {"pretrain": 1, "train_per_class": 0, "test_per_class": 0, "workers": 0}
    with monkeypatch.context() as patched:
        patched.setattr(demo_build, "write_mp4", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_demo(tmp_path / "demo", **sizes)
    before = digests(build_demo(tmp_path / "other", seed=1, **sizes))
    assert digests(build_demo(tmp_path / "demo", seed=1, **sizes)) == before


def test_the_loser_of_a_race_keeps_the_winner_s_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"pretrain": 1, "train_per_class": 0, "test_per_class": 0, "workers": 0}
    root = tmp_path / "demo"
    fill = demo_build.make_missing_clips

    def fill_while_a_rival_finishes(*args: object) -> None:
        fill(*args)
        monkeypatch.setattr(demo_build, "make_missing_clips", fill)
        (tmp_path / "rival").mkdir()
        build_demo(tmp_path / "rival" / "demo", **sizes).rename(root)
        (tmp_path / "rival").rmdir()

    monkeypatch.setattr(demo_build, "make_missing_clips", fill_while_a_rival_finishes)
    monkeypatch.setattr(demo_build, "hold", lambda *_, **__: contextlib.nullcontext())  # on a disk without locks
    assert ensure_demo(root, **sizes) == root
    assert len(demo_rows(root)[0]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_who_waited_for_another_builder_takes_its_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"pretrain": 1, "train_per_class": 0, "test_per_class": 0, "workers": 0}
    hold, filled = demo_build.hold, []

    @contextlib.contextmanager
    def after_another(*args: Any, **options: Any) -> Iterator[None]:
        monkeypatch.setattr(demo_build, "hold", hold)
        build_demo(*args[:1], **sizes)
        monkeypatch.setattr(demo_build, "make_missing_clips", lambda *_: filled.append("twice"))
        with hold(*args, **options):
            yield

    monkeypatch.setattr(demo_build, "hold", after_another)
    assert len(demo_rows(ensure_demo(tmp_path / "demo", **sizes))[0]) == 1
    assert not filled


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path))
    root = ensure_demo(pretrain=1, train_per_class=0, test_per_class=0)
    assert root.parent == tmp_path
    assert root.name.startswith("demo-")


def test_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DemoError, match=r"thesis\.tex.*name an empty folder"):
        build_demo(tmp_path, **SMALL)
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_that_cannot_be_made_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"cannot use .*file.*Not a directory; check the path"):
        build_demo(tmp_path / "file" / "demo", **SMALL)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DemoError, match="read-only; make it writable"):
        build_demo(tmp_path / "demo", **SMALL)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EROFS, "read-only; make it writable"), (errno.ENOSPC, "disk is full; free")]
)
def test_errors_of_the_disk_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fails(path: Path, frames: np.ndarray, audio: np.ndarray, **rates: float) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(demo_build, "write_mp4", fails)
    with pytest.raises(DemoError, match=words) as caught:
        build_demo(tmp_path / "demo", **SMALL)
    assert caught.value.errno == code
    assert list(tmp_path.iterdir()) == []
