"""The health report: every illness in its own row and in no other, twins across splits, and a page that is whole."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_factory import noise, write_media

from avssl.commands.prepare import PrepareOptions, prepare
from avssl.data.manifest import Manifest

RATE = 16000
FINDINGS = (
    "missing",
    "corrupt",
    "outside",
    "no_sound",
    "no_pictures",
    "silent",
    "cancel",
    "still",
    "short",
    "cut_short",
    "partial",
    "apart",
    "duplicate",
)


def film(path: Path, seed: int, **options: Any) -> Path:
    """Three seconds of noise, a different one for every seed, and of moving pictures."""
    return write_media(path, **{"seconds": 3.0, "waveform": noise(3.0, RATE, seed)} | options)


def write_still(path: Path) -> Path:
    """Three seconds of sound and of one picture, as a slide show has them."""
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=RATE, layout="mono")
        video.width, video.height, video.pix_fmt = 80, 48, "yuv420p"
        for _ in range(75):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(noise(3.0, RATE, 50)[None], format="fltp", layout="mono")
        sound.sample_rate = RATE
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


def broken_sound(path: Path) -> Path:
    """A header of sound and pictures over bytes that are neither."""
    data = bytearray(film(path, 60).read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov")
    data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finding")
    for seed in range(4):
        film(root / f"good{seed}.mp4", seed)
    broken_sound(root / "corrupt.mp4")
    film(root / "no_sound.mp4", 5, audio_codec=None)
    film(root / "no_pictures.wav", 6, video_codec=None, audio_codec="pcm_s16le")
    film(root / "silent.mp4", 7, waveform=np.full(3 * RATE, 3e-4, dtype="f4") * np.sign(noise(3.0, RATE, 7)))
    write_still(root / "still.mp4")
    film(root / "short.mp4", 9, seconds=0.8, waveform=noise(0.8, RATE, 9))
    film(root / "cut_short.mp4", 10)
    film(root / "outside.mp4", 11)
    film(root / "apart.mkv", 13, audio_start=4.0)
    (root / "partial.ts").write_bytes(2 * film(root / "partial.ts", 14).read_bytes())
    opposite = noise(3.0, RATE, 15)
    film(root / "cancel.mov", 15, waveform=np.stack([opposite, -opposite]), layout="stereo", audio_codec="pcm_s16le")
    film(root / "train.mp4", 12)
    (root / "test.mp4").write_bytes((root / "train.mp4").read_bytes())
    return root


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], tuple[Manifest, dict[str, Any]]]:
    """Manifest and report, deep or by headers only."""
    folder = tmp_path_factory.mktemp("prepared")
    names = ["good0.mp4", "good1.mp4", "good2.mp4", "good3.mp4", "gone.mp4", "corrupt.mp4", "no_sound.mp4"]
    names += ["no_pictures.wav", "silent.mp4", "still.mp4", "short.mp4", "cut_short.mp4", "outside.mp4"]
    names += ["apart.mkv", "partial.ts", "cancel.mov"]
    rows = [{"clip_id": name, "path": name, "split": "train", "label.kind": k % 2} for k, name in enumerate(names)]
    rows += [
        {"clip_id": f"{split}.mp4", "path": f"{split}.mp4", "split": split, "label.kind": 1}
        for split in ("train", "test")
    ]
    spans = {"cut_short.mp4": (1.0, 4.0), "outside.mp4": (4.0, 7.0)}
    for row in rows:
        row["start"], row["end"] = spans.get(str(row["path"]), (None, None))
    Manifest.from_rows(rows, root, {"kind": ["odd <b>", "even"]}).save(folder / "listed.parquet")

    def run(deep: bool) -> tuple[Manifest, dict[str, Any]]:
        output = folder / f"deep{deep}.parquet"
        if not output.exists():
            told: list[str] = []
            options = PrepareOptions(str(folder / "listed.parquet"), output, workers=0, deep=deep)
            report = prepare(options, told.append)
            assert json.loads(output.with_suffix(".json").read_text())["findings"] == report["findings"]
            output.with_suffix(".txt").write_text("\n".join(told))
            assert not list(folder.glob(".*")), "a finished run leaves no journal behind"
        return Manifest.load(output), json.loads(output.with_suffix(".json").read_text()) | {"folder": output}

    return run


def test_each_illness_has_its_own_row_and_no_other(prepared) -> None:
    manifest, report = prepared(True)
    assert tuple(report["findings"]) == FINDINGS
    findings = dict(zip(manifest.column("clip_id"), manifest.column("findings"), strict=True))
    expected = {
        f"{name}.mp4": name for name in ("corrupt", "no_sound", "silent", "still", "short", "cut_short", "outside")
    }
    expected |= {
        "gone.mp4": "missing",
        "no_pictures.wav": "no_pictures",
        "apart.mkv": "apart",
        "partial.ts": "partial",
        "cancel.mov": "cancel",
        "train.mp4": "duplicate",
        "test.mp4": "duplicate",
    }
    assert findings == {**{f"good{k}.mp4": "" for k in range(4)}, **expected}
    assert {name: finding["clips"] for name, finding in report["findings"].items()} == {
        **dict.fromkeys(FINDINGS, 1),
        "duplicate": 2,
    }
    assert report["findings"]["partial"]["reasons"] == {"timestamps start over": 1}
    assert report["findings"]["corrupt"]["reasons"] == {"audio does not decode": 1}
    assert report["findings"]["silent"]["examples"] == ["silent.mp4"] and report["findings"]["silent"]["splits"] == {
        "train": 1
    }
    assert (report["clips"], report["available"], report["healthy"]) == (18, 15, 4)


def test_headers_alone_say_what_was_not_looked_at(prepared) -> None:
    _, report = prepared(False)
    clips = {name: finding["clips"] for name, finding in report["findings"].items()}
    assert (clips["silent"], clips["still"], clips["duplicate"]) == (None, None, None)
    assert report["duplicates"] == {"same_youtube_id": None, "same_bytes": None, "same_sound": None}
    assert {clips[name] for name in ("missing", "no_sound", "no_pictures", "short", "cut_short", "outside")} == {1}
    told = report["folder"].with_suffix(".txt").read_text()
    assert "not looked at without --deep: silent, channels cancel, still picture, in two splits" in told


def test_a_stream_that_does_not_decode_is_not_used(prepared) -> None:
    manifest, _ = prepared(True)
    usable, reasons = manifest.usable(audio=True, video=True)
    assert "corrupt.mp4" not in usable.column("clip_id") and reasons["audio does not decode"] == 1


def test_numbers_of_the_report(prepared) -> None:
    _, report = prepared(True)
    assert report["class_counts"] == {"kind": {"train": {"odd <b>": 8, "even": 9}, "test": {"odd <b>": 0, "even": 1}}}
    assert report["splits"] == {"train": 17, "test": 1}
    seconds = report["seconds"]
    assert sum(seconds["counts"]) == 15 and seconds["median"] == pytest.approx(3.0, abs=0.1)
    assert seconds["shortest"] == pytest.approx(0.8, abs=0.1)


class Page(HTMLParser):
    """Checks that tags close in order; keeps tags, text, ids of sections, and every attribute that could fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.fetched, self.sections, self.text = [], set(), [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.add(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        self.sections += [value for name, value in attributes if tag == "section" and name == "id"]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def test_the_page_is_whole_and_fetches_nothing(prepared) -> None:
    _, report = prepared(True)
    text = report["folder"].with_suffix(".html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.sections == ["findings", "errors", "duplicates", "classes", "streams", "provenance"]
    assert page.fetched == [] and not re.search(r"https?://|@import|url\(", text) and "script" not in page.tags
    for finding in report["findings"].values():
        assert finding["title"] in page.text and finding["meaning"] in page.text
    assert "odd <b>" in page.text and "not looked at" not in page.text and "Every clip was decoded" in page.text
    headers = Page(prepared(False)[1]["folder"].with_suffix(".html").read_text(encoding="utf-8"))
    assert headers.text.count("not looked at") == 7  # the remark, four illnesses, two kinds of twins


@pytest.mark.realdata
def test_real_odd_media(real_data: Path, tmp_path: Path) -> None:
    options = PrepareOptions(str(real_data / "odd_media"), tmp_path / "odd.parquet", workers=1, deep=True)
    report = prepare(options, lambda line: None)
    findings = report["findings"]
    assert report["clips"] == 45 and findings["missing"]["clips"] == 0
    assert (findings["no_sound"]["clips"], findings["no_pictures"]["clips"]) == (10, 15)
    # Two hold digital silence, one peaks at -62 dBFS.
    assert [path.removeprefix("av__")[:6] for path in findings["silent"]["examples"]] == ["Meridi", "prores", "ref_10"]
    assert findings["silent"]["clips"] == 3 and findings["still"]["clips"] == 0
    assert report["errors"]["not a media file"]["clips"] == 2
