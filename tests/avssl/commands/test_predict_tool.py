"""Predictions over time against the model called directly, on files, pipes and raw streams, whole and broken."""

import csv
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import av
import media_factory
import numpy as np
import pytest
import torch
import yaml
from scipy.io import wavfile

import avssl
import mast
from avssl.commands import main
from avssl.commands.predict import CSV_COLUMNS, create_writer, predict_files, predict_stream, run_predict
from avssl.data.catalog import find_entry
from avssl.data.manifest import Manifest
from avssl.data.media import read_audio
from avssl.data.media.probe import RESTARTS
from avssl.data.scan import scan
from avssl.data.windows import cut_into_windows
from avssl.loading import checkpoint_settings, load, save_classifier
from avssl.models.visual_classifier import build_visual_classifier
from avssl.prediction import Prediction, Predictor

ROOT = Path(__file__).parents[3]
CLASSES = {"sound": ["rain", 'the "big", dog', "käse"], "tags": ["near", "far"]}
RATE = 16000


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A run with a small random model of two heads, one of which has several labels at once."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = mast.create_model("mast_pico", num_classes=5, embed_dim=16, depths=[1, 1, 1, 1])
    torch.nn.init.normal_(model.get_submodule("head").weight, std=0.3)
    frontend = mast.LogMel(num_mels=64)
    extra = {"clip_seconds": 1.0, "multilabel": ["tags"]}
    mast.save_pretrained(model, folder / "audio_encoder", frontend=frontend, labels=CLASSES, extra=extra)
    return folder


def changing_noise(seconds: float, rate: int = RATE) -> np.ndarray:
    """(S,) int16 noise whose loudness and colour change."""
    rng = np.random.default_rng(3)
    wave = rng.standard_normal(round(seconds * rate))
    time = np.arange(len(wave)) / rate
    return (8000 * np.convolve(wave, [1, 1, 1, 0.5], "same") * np.sin(time) ** 2 * 0.3).astype("<i2")


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> str:
    wavfile.write(path, rate, samples)
    return str(path)


class OddPipe:
    """Gives its bytes in pieces of odd sizes, and cannot seek."""

    def __init__(self, data: bytes, largest: int = 1999) -> None:
        self.data, self.at, self.largest = data, 0, largest

    def read(self, size: int = -1) -> bytes:
        size = min(size, 1 + self.at * 7 % self.largest) if size > 0 else self.largest
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        return piece


def predicted(predictor: Predictor, files: list[str], format: str = "json", top: int = 5, **options) -> list:
    target = io.StringIO()
    merge = options.pop("merge", True)
    failures = predict_files(
        files, predictor, create_writer(format, target, predictor.labels, top, merge=merge), **options
    )
    assert not failures
    lines = target.getvalue().splitlines()
    return [json.loads(line) for line in lines] if format == "json" else lines


def directly(classifier: Path, wave: np.ndarray, window: float, hop: float) -> list[dict]:
    """What the tool should say, from `mast` alone."""
    loaded = mast.from_pretrained(classifier / "audio_encoder")
    size, step, rows = round(window * RATE), round(hop * RATE), []
    for begin in range(0, len(wave), step):
        piece = wave[begin : begin + size]
        with torch.no_grad():
            padded = torch.from_numpy(np.pad(piece, (0, size - len(piece))))[None]
            logits = loaded.model(loaded.frontend(padded))[0]
        probabilities = {"sound": logits[:3].softmax(0).tolist(), "tags": logits[3:].sigmoid().tolist()}
        rows.append({"start": begin / RATE, "end": (begin + len(piece)) / RATE, "heads": probabilities})
        if begin + size >= len(wave):
            return rows
    return rows


@pytest.mark.parametrize("hop", [1.0, 0.4])
def test_windows_and_scores_are_those_of_the_model_itself(hop: float, classifier: Path, tmp_path) -> None:
    samples = changing_noise(3.5)
    file = write_wav(tmp_path / "a.wav", samples)
    rows = predicted(Predictor(load(classifier), hop=hop), [file], batch_size=3)
    expected = directly(classifier, samples.astype(np.float32) / 32768, 1.0, hop)
    assert len(rows) == len(expected) >= 4
    for row, right in zip(rows, expected, strict=True):
        assert row["file"] == file
        assert (row["start"], row["end"]) == pytest.approx((right["start"], right["end"]))
        for head, scores in right["heads"].items():
            order = np.argsort(scores)[::-1]
            assert [best["class"] for best in row["heads"][head]] == [CLASSES[head][k] for k in order]
            assert [best["score"] for best in row["heads"][head]] == pytest.approx(np.sort(scores)[::-1], abs=1e-4)
    assert rows[-1]["end"] == 3.5


def test_shared_frames_change_no_score(classifier: Path) -> None:
    blocks = [changing_noise(4.3).astype(np.float32) / 32768]
    predictor = Predictor(load(classifier), hop=0.3)
    anew = predictor.classify(list(predictor.windows(blocks)))
    for batch_size in (1, 4):
        shared = list(predictor.predict(blocks, batch_size))
        assert [(one.start, one.end) for one in shared] == [(one.start, one.end) for one in anew]
        for one, other in zip(shared, anew, strict=True):
            for head, scores in other.scores.items():
                np.testing.assert_allclose(one.scores[head], scores, rtol=0, atol=2e-6)
    assert predictor.sliding() is not None
    assert Predictor(load(classifier), hop=0.305).sliding() is None  # its windows begin between frames
    assert Predictor(load(classifier), hop=1.0).sliding() is None  # they share none


def test_a_resampled_file_is_judged_on_what_training_reads(classifier: Path, tmp_path) -> None:
    file = write_wav(tmp_path / "a.wav", changing_noise(2.0, 44100), 44100)
    rows = predicted(Predictor(load(classifier), window=0.5), [file])
    expected = directly(classifier, read_audio(file, 0.0, None, RATE).waveform, 0.5, 0.5)
    for row, right in zip(rows, expected, strict=True):
        assert row["heads"]["sound"][0]["score"] == pytest.approx(max(right["heads"]["sound"]), abs=1e-4)


def without_names(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "file"} for row in rows]


def test_streams_and_pipes_equal_the_file(classifier: Path, tmp_path) -> None:
    samples = changing_noise(3.3, 22050)
    file = write_wav(tmp_path / "a.wav", samples, 22050)
    predictor = Predictor(load(classifier), hop=0.7)
    expected = without_names(predicted(predictor, [file]))
    piped = predicted(predictor, ["-"], stdin=OddPipe(Path(file).read_bytes()))
    assert {row["file"] for row in piped} == {"stdin"}
    target = io.StringIO()
    writer = create_writer("json", target, predictor.labels, 5)
    assert not predict_stream(OddPipe(samples.tobytes()), predictor, writer, rate=22050)
    streamed = [json.loads(line) for line in target.getvalue().splitlines()]
    for rows in (piped, streamed):
        assert len(rows) == len(expected)
        for row, right in zip(without_names(rows), expected, strict=True):
            assert (row["start"], row["end"]) == (right["start"], right["end"])
            for head, best in right["heads"].items():
                assert [one["class"] for one in row["heads"][head]] == [one["class"] for one in best]
                scores = [one["score"] for one in row["heads"][head]]
                assert scores == pytest.approx([one["score"] for one in best], abs=1e-4)


def test_a_stream_is_judged_as_it_comes(classifier: Path) -> None:
    pipe = OddPipe(changing_noise(10.0).tobytes(), 500)
    seen: list[int] = []

    class Watching(io.StringIO):
        def flush(self) -> None:
            seen.append(pipe.at)

    predictor = Predictor(load(classifier))
    writer = create_writer("text", Watching(), predictor.labels, 1, merge=False)
    predict_stream(pipe, predictor, writer, rate=RATE)
    assert len(seen) == 10
    for number, taken in enumerate(seen, start=1):
        assert number * 2 * RATE <= taken <= number * 2 * RATE + 500


def test_csv_parses_back(classifier: Path, tmp_path) -> None:
    file = write_wav(tmp_path / 'a "strange", näme.wav', changing_noise(2.0))
    predictor = Predictor(load(classifier))
    rows = predicted(predictor, [file], top=2)
    text = "\n".join(predicted(predictor, [file], "csv", top=2))
    table = list(csv.DictReader(io.StringIO(text)))
    assert tuple(table[0]) == CSV_COLUMNS and len(table) == 2 * 2 * 2
    flat = [
        (file, row["start"], row["end"], head, rank, one["class"], one["score"])
        for row in rows
        for head, best in row["heads"].items()
        for rank, one in enumerate(best, start=1)
    ]
    for line, right in zip(table, flat, strict=True):
        got = (line["file"], float(line["start"]), float(line["end"]), line["head"], int(line["rank"]), line["class"])
        assert got == right[:6] and float(line["score"]) == pytest.approx(right[6])


def test_text_joins_neighbours_that_agree() -> None:
    def text(merge: bool) -> list[str]:
        target = io.StringIO()
        writer = create_writer("text", target, {"x": ["a", "b"]}, 2, merge=merge)
        with writer.file("f.wav"):
            for start, a in ((0.0, 0.9), (0.5, 0.7), (1.0, 0.2), (1.5, 0.8)):
                writer.write(Prediction(start, start + 1.0, {"x": np.array([a, 1 - a])}))
        with writer.file("g.wav"):
            writer.write(Prediction(0.0, 1.0, {"x": np.array([0.6, 0.4])}))
        return target.getvalue().splitlines()

    assert text(True) == [
        "f.wav:",
        "      0.00 to     1.50 s  a 0.80, b 0.20",
        "      1.00 to     2.00 s  b 0.80, a 0.20",
        "      1.50 to     2.50 s  a 0.80, b 0.20",
        "g.wav:",
        "      0.00 to     1.00 s  a 0.60, b 0.40",
    ]
    assert len(text(False)) == 2 + 5


def test_broken_files_are_told_and_counted_and_the_rest_is_judged(classifier: Path, tmp_path, capsys, caplog) -> None:
    good = write_wav(tmp_path / "good.wav", changing_noise(1.0))
    (tmp_path / "text.wav").write_text("no sound\n" * 50)
    files = [str(tmp_path / "text.wav"), good, str(tmp_path / "none.wav"), str(tmp_path)]
    common = ["predict", "--checkpoint", str(classifier), "--format", "json"]
    with caplog.at_level(logging.ERROR):
        assert main([*common, *files]) == 1
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == [good]
    assert "3 of 4 files failed: not a media file x1, file not found x1, not a file x1" in caplog.text
    assert main([*common, good]) == 0
    assert main([*common, good, "--window", "0.001"]) == 1
    assert capsys.readouterr().err.startswith("error: window: 0.001 s are shorter than one frame")


def test_what_came_before_the_damage_is_judged(classifier: Path, tmp_path, caplog) -> None:
    whole = Path(write_wav(tmp_path / "a.wav", changing_noise(4.0))).read_bytes()
    raw = np.frombuffer(whole[44:], "<i2").astype("<f4") / 32768
    raw[RATE * 5 // 2] = np.nan
    predictor, target = Predictor(load(classifier)), io.StringIO()
    writer = create_writer("json", target, predictor.labels, 1)
    file = tmp_path / "nan.wav"
    wavfile.write(file, RATE, raw)
    assert predict_files([str(file)], predictor, writer, batch_size=16) == {"non-finite audio": 1}
    assert [json.loads(line)["start"] for line in target.getvalue().splitlines()] == [0.0, 1.0]


def options(**changes) -> dict:
    defaults = {
        "window": None,
        "hop": None,
        "top": 1,
        "format": "text",
        "batch_size": 4,
        "device": "cpu",
        "merge": True,
    }
    return defaults | {"stream": False, "rate": 16000, "sample_format": "s16le", "channels": 1} | changes


@pytest.mark.parametrize(
    ("files", "changes", "told"),
    [
        (["a.wav"], {"stream": True}, "give - as the only file"),
        (["-", "-"], {}, "only once"),
        (["a.wav"], {"top": 0}, "top"),
        (["a.wav"], {"hop": -1.0}, "hop"),
        (["a.wav"], {"window": float("inf")}, "finite"),
        (["a.wav"], {"device": "warp"}, "device"),
        (["a.wav"], {"format": "xml"}, "format"),
    ],
)
def test_options_that_make_no_sense(files, changes, told: str, classifier: Path) -> None:
    with pytest.raises(ValueError, match=told):
        run_predict(files, classifier, **options(**changes), output=io.StringIO())


def test_checkpoints_that_are_no_classifier(classifier: Path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Predictor(load(tmp_path / "nowhere"))
    model = mast.create_model("mast_pico", num_classes=0, embed_dim=16, depths=[1, 1, 1, 1])
    mast.save_pretrained(model, tmp_path / "encoder", frontend=mast.LogMel())
    with pytest.raises(ValueError, match="no classes"):
        Predictor(load(tmp_path / "encoder"))
    model = mast.create_model("mast_pico", num_classes=3, embed_dim=16, depths=[1, 1, 1, 1])
    mast.save_pretrained(model, tmp_path / "bare", labels={"x": list("abc")})
    with pytest.raises(ValueError, match="without its frontend"):
        Predictor(load(tmp_path / "bare"))


def test_a_classifier_that_sees_is_refused_and_a_checkpoint_of_training_is_as_good_as_the_export(
    classifier: Path, tmp_path
) -> None:
    seeing = build_visual_classifier(labels={"x": ["a", "b"]}, video="tiny", num_frames=2, crop_size=16)
    save_classifier(tmp_path / "seeing", seeing)
    with pytest.raises(ValueError, match="classifies video; predictions over time are of sound alone"):
        Predictor(load(tmp_path / "seeing"))

    model = load(classifier).classifier
    weights = {f"classifier.{name}": value for name, value in model.state_dict().items()}
    state = {"settings": checkpoint_settings(model, {"multilabel": ["tags"]}), "average": None, "task": weights}
    torch.save(state, tmp_path / "last.ckpt")
    files = [write_wav(tmp_path / "a.wav", changing_noise(2.5))]
    exported = predicted(Predictor(load(classifier)), files)
    assert exported and predicted(Predictor(load(tmp_path / "last.ckpt"), window=1.0), files) == exported


def test_the_window_is_the_length_of_training(classifier: Path, tmp_path) -> None:
    model = mast.create_model("mast_pico", num_classes=3, embed_dim=16, depths=[1, 1, 1, 1])
    export = tmp_path / "run" / "audio_encoder"
    mast.save_pretrained(model, export, frontend=mast.LogMel(num_mels=64), labels={"x": list("abc")})
    with pytest.raises(ValueError, match="give --window"):
        Predictor(load(tmp_path / "run"))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {"name": "esc10", "clip_seconds": None}}))
    assert Predictor(load(tmp_path / "run")).seconds == find_entry("esc10").clip_seconds == 5.0
    config.write_text(yaml.safe_dump({"data": {"name": "esc10", "clip_seconds": 2.5}}))
    assert Predictor(load(export)).seconds == 2.5
    assert Predictor(load(export), window=0.3).seconds == 0.3
    assert Predictor(load(classifier)).seconds == 1.0


def test_a_name_that_is_not_utf8_is_read_and_written_escaped(classifier: Path, tmp_path, caplog) -> None:
    files = [
        write_wav(tmp_path / os.fsdecode(b"k\xe4se.wav"), changing_noise(1.0)),
        tmp_path / os.fsdecode(b"\xe4.wav"),
    ]
    files.append(write_wav(tmp_path / "after.wav", changing_noise(1.0)))
    target = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    predictor = Predictor(load(classifier))
    writer = create_writer("json", target, predictor.labels, 1)
    assert predict_files([str(file) for file in files], predictor, writer) == {"file not found": 1}
    assert r"\xe4.wav: file not found" in caplog.text
    target.seek(0)
    assert [Path(json.loads(line)["file"]).name for line in target] == [r"k\xe4se.wav", "after.wav"]


def test_sound_that_begins_late_is_judged_from_its_beginning_on(classifier: Path, tmp_path, caplog) -> None:
    wave = changing_noise(3.0).astype(np.float32) / 32768
    for name, start in (("late.mov", 2.5), ("whole.mov", 0.0)):
        media_factory.write_media(
            tmp_path / name, seconds=4.0, audio_codec="pcm_s16le", waveform=wave, audio_start=start
        )
    with caplog.at_level(logging.INFO):
        for hop in (1.0, 0.5):
            late, whole = (
                predicted(Predictor(load(classifier), hop=hop), [str(tmp_path / name)])
                for name in ("late.mov", "whole.mov")
            )
            assert len(late) == len(whole) == (3 if hop == 1.0 else 5)
            for row, other in zip(late, whole, strict=True):
                assert row["start"] == pytest.approx(other["start"] + 2.5) and row["end"] == pytest.approx(
                    row["start"] + 1
                )
                for head, best in other["heads"].items():
                    assert [k["score"] for k in row["heads"][head]] == pytest.approx(
                        [k["score"] for k in best], abs=1e-3
                    )
    assert "late.mov: sound begins at 2.50 s" in caplog.text and "whole.mov: sound" not in caplog.text


def test_windows_within_a_gap_are_left_out_and_told(classifier: Path, tmp_path, caplog) -> None:
    whole = media_factory.write_media(
        tmp_path / "whole.mkv",
        seconds=12.0,
        video_codec=None,
        audio_codec="pcm_s16le",
        waveform=np.full(12 * RATE, 0.1),
    )
    file = str(tmp_path / "gap.mkv")
    with av.open(str(whole)) as given, av.open(file, "w") as made:
        stream = made.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.pts is not None and not 2.0 <= float(packet.pts * packet.time_base) < 3.0:
                packet.stream = stream
                made.mux(packet)
    predictor = Predictor(load(classifier))
    starts = [row["start"] for row in predicted(predictor, [file])]
    assert starts == [float(second) for second in range(12) if second != 2]
    assert "gap.mkv: 1 windows left out, in which the file has no sound" in caplog.text
    lines = predicted(predictor, [file], format="text", top=1)[1:]
    assert [line.split(" s ")[0] for line in lines] == ["      0.00 to     2.00", "      3.00 to    12.00"]


def test_recordings_joined_in_one_file_are_told(classifier: Path, tmp_path, caplog) -> None:
    """Of the second one nothing is judged: its times are those of the first."""
    parts = [
        media_factory.write_media(tmp_path / f"{k}.ogg", seconds=3.0 + k, video_codec=None, audio_codec="libopus",
                                  sample_rate=48000).read_bytes()
        for k in range(2)
    ]  # fmt: skip
    joined = tmp_path / "joined.ogg"
    joined.write_bytes(b"".join(parts))
    predictor = Predictor(load(classifier))
    warnings: dict[str, str] = {}
    writer = create_writer("json", io.StringIO(), predictor.labels, 1)
    assert not predict_files([str(joined), str(tmp_path / "0.ogg")], predictor, writer, warnings=warnings)
    assert warnings == {str(joined): RESTARTS}
    assert (
        "joined.ogg: timestamps start over, used up to there (3.0" in caplog.text and "0.ogg: time" not in caplog.text
    )
    predict_files(["-"], predictor, writer, stdin=OddPipe(joined.read_bytes()), warnings=warnings)
    assert warnings["stdin"] == RESTARTS
    found = avssl.predict(joined, classifier, device="cpu")
    assert found.warnings == {str(joined): RESTARTS} and len(found.files[str(joined)]) == 3


def by_class(rows: list[dict[str, list[dict[str, Any]]]]) -> dict[tuple[Any, ...], float]:
    """The score of each (row, head, place in the list, class)."""
    return {
        (row, head, place, each["class"]): each["score"]
        for row, heads in enumerate(rows)
        for head, scores in heads.items()
        for place, each in enumerate(scores)
    }


def test_one_channel_is_judged_as_in_training(classifier: Path, tmp_path) -> None:
    samples = changing_noise(2.0)
    mono = write_wav(tmp_path / "mono.wav", samples)
    opposite = write_wav(tmp_path / "opposite.wav", np.stack([samples, -samples], axis=1))
    expected = [row["heads"] for row in predicted(Predictor(load(classifier)), [mono])]
    assert [row["heads"] for row in predicted(Predictor(load(classifier), channel=0), [opposite])] == expected
    assert [row["heads"] for row in predicted(Predictor(load(classifier)), [opposite])] != expected
    raw = io.BytesIO(np.stack([samples, -samples], axis=1).tobytes())
    target = io.StringIO()
    predictor = Predictor(load(classifier), channel=0)
    assert not predict_stream(raw, predictor, create_writer("json", target, predictor.labels, 5), rate=RATE, channels=2)
    told = [json.loads(line)["heads"] for line in target.getvalue().splitlines()]
    assert by_class(told).keys() == by_class(expected).keys()
    assert by_class(told) == pytest.approx(
        by_class(expected), abs=2e-6
    )  # its windows come one by one: rounded otherwise
    run = tmp_path / "run"
    shutil.copytree(classifier, run)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "demo", "channel": 0}}))
    assert (
        Predictor(load(run)).channel == 0
        and [r["heads"] for r in predicted(Predictor(load(run)), [opposite])] == expected
    )
    with pytest.raises(ValueError, match="channel"):
        Predictor(load(classifier), channel=-1)


@pytest.mark.realdata
def test_real_windows_are_full_and_those_of_embed(classifier: Path, cases: Path) -> None:
    names = {
        "still/one_frame.mp4": (0.0, 30),
        "still/video5s_audio30s.mp4": (0.0, 30),
        "late/audio_late_8.mp4": (8.0, 22),
    }
    rows = [{"clip_id": name, "path": name} for name in names]
    listed = scan(Manifest.from_rows(rows, cases), workers=0)
    windows, index = cut_into_windows(listed, 1.0, "all", modalities=("audio",))
    starts = np.asarray(windows.column("start"))
    for number, (name, (first, count)) in enumerate(names.items()):
        found = [row["start"] for row in predicted(Predictor(load(classifier)), [str(cases / name)])]
        assert len(found) == count and found[0] == pytest.approx(first, abs=0.03)
        assert found == pytest.approx(starts[index == number].tolist(), abs=0.03)
