"""Scanning: every file looked at once, every failure named, no file able to stop it."""

import logging
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from media_factory import write_media

from avssl.data import scan as scan_module
from avssl.data.manifest import Manifest
from avssl.data.media import MediaInfo, pool, probe
from avssl.data.media.pool import probe_all
from avssl.data.scan import report_lines, scan, scan_report
from avssl.limits import Limits


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    write_media(folder / "both.mp4", seconds=4.0, sample_rate=44100)
    write_media(folder / "sound.wav", video_codec=None, audio_codec="pcm_s16le", sample_rate=8000)
    write_media(folder / "silent.mp4", audio_codec=None, size=(64, 64))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not media\n" * 100)
    return folder


@pytest.fixture
def manifest(root) -> Manifest:
    rows = [
        {"clip_id": "whole", "path": "both.mp4", "label.x": 1},
        {"clip_id": "part", "path": "both.mp4", "start": 1.0, "end": 2.0},
        {"clip_id": "over", "path": "both.mp4", "start": 3.0, "end": 6.0},
        {"clip_id": "outside", "path": "both.mp4", "start": 5.0, "end": 6.0},
        {"clip_id": "sound", "path": "sound.wav", "error": "stale"},
        {"clip_id": "silent", "path": "silent.mp4"},
        {"clip_id": "empty", "path": "empty.mp4"},
        {"clip_id": "text", "path": "text.mp4"},
        {"clip_id": "gone", "path": "gone.mp4"},
    ]
    return Manifest.from_rows(rows, root, {"x": ["a", "b"]})


def test_two_spellings_of_a_path_are_both_filled(root):
    rows = [{"clip_id": name, "path": name} for name in ("sound.wav", "./sound.wav", "x/../sound.wav")]
    (root / "x").mkdir()
    result = scan(Manifest.from_rows(rows, root), workers=0, progress=False)
    assert result.column("has_audio") == [True] * 3 and len(set(result.column("duration"))) == 1


def test_pictures_that_are_too_large_are_counted_and_another_limit_scans_anew(tmp_path, limited) -> None:
    write_media(tmp_path / "silent.mp4", audio_codec=None, size=(64, 64))
    write_media(tmp_path / "both.mp4", size=(64, 64))
    manifest = Manifest.from_rows([{"clip_id": name, "path": f"{name}.mp4"} for name in ("silent", "both")], tmp_path)
    rules = scan_module.scan_rules(None)
    limited(Limits(max_pixels=4095))
    assert scan_module.scan_rules(None) != rules
    result = scan(manifest, workers=0, progress=False)
    assert result.column("error") == ["picture too large", ""]
    assert result.column("video_error") == ["picture too large"] * 2
    assert result.column("has_audio") == [False, True]


@pytest.mark.parametrize("workers", [0, 2])
def test_columns_are_filled_in_order(manifest, workers):
    result = scan(manifest, workers=workers, progress=False)
    assert result.column("clip_id") == manifest.column("clip_id")
    assert result.column("error") == [
        "", "", "", "segment outside file", "", "", "empty file", "not a media file", "file not found",
    ]  # fmt: skip
    assert result.column("has_audio") == [True, True, True, True, True, False, False, False, False]
    assert result.column("has_video") == [True, True, True, True, False, True, False, False, False]
    assert result.column("sample_rate")[:6] == [44100] * 4 + [8000, None]
    assert result.column("width")[:6] == [80] * 4 + [None, 64]
    assert result.row(0).duration == pytest.approx(4.0, abs=0.1) and result.row(4).duration == pytest.approx(2.0)
    assert result.labels("x").tolist() == [1] + [-1] * 8
    usable, reasons = result.usable(audio=True, video=True)
    assert usable.column("clip_id") == ["whole", "part", "over"]
    assert reasons == {"segment outside file": 1, "no video stream": 1, "no audio stream": 1, "empty file": 1,
                       "not a media file": 1, "file not found": 1}  # fmt: skip


def test_workers_do_not_change_the_result(manifest):
    assert scan(manifest, workers=0).digest == scan(manifest, workers=2).digest


def test_each_file_is_probed_once(manifest, monkeypatch):
    probed = []

    def recording(paths, **options):
        probed.extend(paths := list(paths))
        return probe_all(paths, **options)

    monkeypatch.setattr(scan_module, "probe_all", recording)
    scan(manifest, workers=0)
    assert len(probed) == len(set(probed)) == 6


def test_report_counts_and_names(manifest, caplog):
    with caplog.at_level(logging.INFO, logger="avssl.data.scan"):
        report = scan_report(scan(manifest, workers=0))
    assert (report["clips"], report["files"]) == (9, 6)
    assert report["usable"] == {"audio": 4, "video": 4, "both": 3}
    assert report["hours"] * 3600 == pytest.approx(4 + 1 + 1 + 2 + 2, abs=0.3)
    assert report["errors"]["file not found"] == {"clips": 1, "examples": ["gone.mp4"]}
    assert report["cut_short"] == {"audio": 1, "video": 1, "both": 1}
    assert report["sample_rates"] == {"44100": 4, "8000": 1} and report["sizes"] == {"80x48": 4, "64x64": 1}
    assert report_lines(report) == caplog.messages
    assert "1 clips: file not found: gone.mp4" in caplog.messages


def test_a_broken_stream_is_told_and_leaves_the_other_one(root, tmp_path):
    data = bytearray((root / "both.mp4").read_bytes())
    with av.open(str(root / "both.mp4")) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.pos is not None:
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    (tmp_path / "half.mp4").write_bytes(data)
    result = scan(Manifest.from_rows([{"clip_id": "a", "path": "half.mp4"}], tmp_path), workers=0, deep=True)
    assert result.column("error") == [""] and result.reasons(audio=True) == [""]
    assert result.reasons(video=True) == result.reasons(audio=True, video=True) == ["video does not decode"]
    report = scan_report(result)
    assert report["stream_errors"] == {"video does not decode": {"clips": 1, "examples": ["half.mp4"]}}
    assert "1 clips: video does not decode, only the other stream is used: half.mp4" in report_lines(report)


def test_report_shows_only_the_first_examples(root):
    rows = [{"clip_id": str(i), "path": f"gone{i}.mp4"} for i in range(10)]
    report = scan_report(scan(Manifest.from_rows(rows, root), workers=0))
    assert report["errors"] == {"file not found": {"clips": 10, "examples": ["gone0.mp4", "gone1.mp4", "gone2.mp4"]}}
    assert report_lines(report)[1].endswith("gone2.mp4, ...")


def test_an_empty_manifest(root):
    assert len(scan(Manifest.from_rows([], root))) == 0
    assert report_lines(scan_report(Manifest.from_rows([], root)))[0].startswith("0 clips")


def fragile(path: str) -> MediaInfo:
    """`probe`, except that some names bring down or stop the process, as a bug in a decoder does."""
    if "crash" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in path:
        time.sleep(600)
    return probe(path)


def test_a_crash_or_a_hang_costs_one_file(root):
    good = str(root / "both.mp4")
    paths = [f"{good}?{i}" for i in range(10)] + ["crash1"] + [f"{good}?{i}" for i in range(10, 50)]
    paths += ["crash2", "crash3", "hang", good]
    infos = {info.path: info for info in probe_all(paths, workers=2, timeout=4, function=fragile)}
    assert set(infos) == set(paths)
    assert [infos[f"crash{i}"].error for i in (1, 2, 3)] == ["decoder crashed"] * 3
    assert infos["hang"].error == infos["hang"].audio_error == "decoder hung"
    assert infos[good].has_audio and infos[good].error == ""
    assert sum(info.error == "file not found" for info in infos.values()) == 50


def stopped_once(path: str) -> MediaInfo:
    """`probe`, except that a signal stops the process at the first try of one file."""
    if path.endswith("both.mp4") and not Path(f"{path}.once").exists():
        Path(f"{path}.once").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return probe(path)


def test_a_process_that_a_signal_stopped_blames_no_file(root):
    paths = [str(root / "both.mp4"), str(root / "gone.mp4")]
    infos = {info.path: info for info in probe_all(paths, workers=1, function=stopped_once)}
    assert [infos[path].error for path in paths] == ["", "file not found"]


def napping(path: str) -> MediaInfo:
    """`probe` after a while."""
    time.sleep(0.5)
    return probe(path)


def test_a_scan_that_was_suspended_blames_no_file(root, monkeypatch):
    wait, slept = pool.wait, []

    def suspended(connections: list, timeout: float) -> list:
        ready = wait(connections, 0.0 if not slept else timeout)
        slept.append(3600.0)
        return ready

    monkeypatch.setattr(pool, "wait", suspended)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(slept[:1])))
    (info,) = probe_all([str(root / "both.mp4")], workers=1, function=napping)
    assert info.error == "" and slept


@pytest.mark.realdata
def test_real_sets_are_whole(real_data):
    paths = [*sorted(real_data.glob("grid/clips/*.mp4"))[:60], *sorted(real_data.glob("esc10/*/*.ogg"))[:60]]
    rows = [{"clip_id": path.stem, "path": path.relative_to(real_data).as_posix()} for path in paths]
    report = scan_report(scan(Manifest.from_rows(rows, real_data), workers=2))
    assert report["errors"] == {} and report["usable"] == {"audio": 120, "video": 60, "both": 60}
    assert report["sample_rates"] == {"44100": 120} and report["fps"] == {"25.0": 60}


def test_a_file_listed_by_its_absolute_and_its_relative_path_is_found_out_for_both(root: Path) -> None:
    rows = [{"clip_id": "a", "path": "both.mp4"}, {"clip_id": "b", "path": str(root / "both.mp4")}]
    result = scan(Manifest.from_rows(rows, root, allow_absolute=True), workers=0, progress=False)
    assert result.reasons(audio=True, video=True) == ["", ""] and result.column("sample_rate") == [44100] * 2
