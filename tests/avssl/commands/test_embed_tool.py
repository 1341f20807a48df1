"""Embedding media: equal to calling the model on decoded windows, resumed where it stopped, honest on losses."""

import json
import shutil
from pathlib import Path

import media_factory
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import avssl
import mast
from avssl.cli import read_settings
from avssl.commands import embed as embed_command
from avssl.commands.embed import embed_media, read_features
from avssl.config import EmbedConfig
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.media import read_audio, read_frames
from avssl.data.spans import ClipSpan, frame_times
from avssl.files import seal
from avssl.loading import save_classifier
from avssl.models.pair import AudioVisualPair
from avssl.models.visual_classifier import build_visual_classifier

AUDIO = {"embed_dim": 16, "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Two videos, one without sound, a sound alone, a short one, and a file that is none."""
    folder = tmp_path_factory.mktemp("media")
    for number, seconds in enumerate((3.3, 2.0)):
        wave = media_factory.noise(seconds, 16000, seed=number)
        media_factory.write_media(
            folder / f"{number}.mkv", seconds=seconds, size=(64, 48), audio_codec="flac", waveform=wave
        )
    media_factory.write_media(folder / "silent.mp4", audio_codec=None, size=(64, 48))
    media_factory.write_media(folder / "sound.wav", video_codec=None, audio_codec="pcm_s16le", seconds=2.0)
    media_factory.write_media(folder / "short.mkv", seconds=0.5, audio_codec="flac", size=(64, 48))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory) -> Path:
    """The folder of a pretraining run with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pair")
    pair = AudioVisualPair.build(
        audio="mast_pico", audio_options=AUDIO, frontend_options={"num_mels": 64}, video="tiny", num_frames=2,
        crop_size=32, embedding_dim=8,
    )  # fmt: skip
    weights = {f"pair.{name}": value for name, value in pair.state_dict().items()}
    state = {"settings": {"kind": "pair", "pair": pair.settings}, "average": None, "task": weights}
    (folder / "checkpoints").mkdir()
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    data = {"name": "demo", "clip_seconds": 1.0, "frame_size": 40, "num_frames": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


def config(checkpoint: Path, media: Path, output: Path, *options: str) -> EmbedConfig:
    arguments = ["--checkpoint", str(checkpoint), "--data", str(media), "--output", str(output)]
    return read_settings(EmbedConfig, [*arguments, "--data.num_workers", "0", *options])


def load(pair_run: Path) -> AudioVisualPair:
    state = torch.load(pair_run / "checkpoints" / "last.ckpt", weights_only=True)
    pair = AudioVisualPair.build(**state["settings"]["pair"])
    pair.load_state_dict({name.removeprefix("pair."): value for name, value in state["task"].items()})
    return pair.eval()


def window(path: Path, start: float, end: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sound (1, 16000) and frames (1, 3, 2, 32, 32) of a window of one second, read by hand."""
    wave = np.zeros(16000, dtype=np.float32)
    found = read_audio(path, start, end - start, 16000).waveform
    wave[: len(found)] = found
    frames = read_frames(path, frame_times(ClipSpan(start, 1.0, end - start), 2), 40)
    top, left = (frames.shape[1] - 40) // 2 + 4, (frames.shape[2] - 40) // 2 + 4
    frames = torch.from_numpy(frames[:, top : top + 32, left : left + 32]).permute(3, 0, 1, 2)[None] / 255
    return torch.from_numpy(wave)[None], frames


def directly(pair: AudioVisualPair, path: Path, start: float, end: float) -> dict[str, np.ndarray]:
    """Embeddings of a window of one second, embedded by hand."""
    wave, frames = window(path, start, end)
    with torch.no_grad():
        mel = pair.frontend(wave)
        audio, video = pair.audio.forward_grid(mel).mean(dim=(1, 2)), pair.video(frames)
        joint = pair.head("joint", "audio")(audio), pair.head("joint", "video")(video)
    names = ("audio_features", "video_features", "audio_embedding", "video_embedding")
    return {name: value[0].numpy() for name, value in zip(names, (audio, video, *joint), strict=True)}


def test_windows_of_a_pair_equal_a_direct_computation(pair_run: Path, media: Path, tmp_path) -> None:
    output = tmp_path / "f.parquet"
    summary = embed_media(config(pair_run, media, output, "--windows", "all", "--batch_size", "3"))
    rows = read_features(output)
    spans = list(zip(rows["clip_id"].tolist(), rows["start"].tolist(), rows["end"].tolist(), strict=True))
    assert [(name, round(start, 3)) for name, start, _ in spans] == [
        *(("0.mkv", k) for k in (0.0, 1.0, 2.0, 3.0)),
        *(("1.mkv", k) for k in (0.0, 1.0)),
        ("short.mkv", 0.0),
    ]
    assert spans[3][2] == pytest.approx(3.3, abs=0.05) and spans[-1][2] == pytest.approx(0.5, abs=0.05)
    pair = load(pair_run)
    for i, (name, start, end) in enumerate(spans):
        for column, expected in directly(pair, media / name, start, end).items():
            np.testing.assert_allclose(rows[column][i], expected, atol=2e-5, err_msg=f"{column} of {name} at {start}")
    assert rows["audio_embedding"].shape == (7, 8) and rows["path"].tolist() == [name for name, _, _ in spans]
    assert pq.read_schema(output).field("audio_embedding").type.list_size == 8
    told = json.loads((tmp_path / "f.json").read_text())
    assert told == seal(json.loads(json.dumps(summary))) and (told["windows"], told["embedded"]) == (7, 7)
    assert summary["projection"] == "joint"
    left_out = {item["path"]: item["reason"] for item in told["left_out"]["items"]}
    assert left_out == {
        "silent.mp4": "no audio stream",
        "sound.wav": "no video stream",
        "broken.mp4": "not a media file",
    }
    assert not list(tmp_path.glob(".f*"))


@pytest.mark.parametrize(("modalities", "clips"), [("audio", 4), ("video", 4)])
def test_one_modality_of_a_pair(modalities: str, clips: int, pair_run: Path, media: Path, tmp_path) -> None:
    embed_media(config(pair_run, media, tmp_path / "f.npz", "--modalities", modalities))
    rows = read_features(tmp_path / "f.npz")
    assert set(rows) == {"clip_id", "path", "start", "end", f"{modalities}_embedding", f"{modalities}_features"}
    assert len(rows["clip_id"]) == clips and rows[f"{modalities}_embedding"].shape == (clips, 8)


def test_an_export_gives_its_features(media: Path, tmp_path) -> None:
    model = mast.create_model("mast_pico", num_classes=2, **AUDIO).eval()
    frontend = mast.LogMel(num_mels=64)
    mast.save_pretrained(
        model, tmp_path / "export", frontend=frontend, labels={"x": ["a", "b"]}, extra={"clip_seconds": 0.5}
    )
    embed_media(config(tmp_path / "export", media, tmp_path / "f.npz", "--windows", "uniform", "--num_windows", "2"))
    rows = read_features(tmp_path / "f.npz")
    assert rows["clip_id"].tolist() == ["0.mkv"] * 2 + ["1.mkv"] * 2 + ["short.mkv"] + ["sound.wav"] * 2
    wave = torch.from_numpy(read_audio(media / "sound.wav", 1.5, 0.5, 16000).waveform)[None]
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(frontend(wave)), pre_logits=True)[0]
    np.testing.assert_allclose(rows["audio_features"][-1], expected, atol=1e-5)
    with pytest.raises(ValueError, match="takes audio, not both"):
        embed_media(config(tmp_path / "export", media, tmp_path / "g.npz", "--modalities", "both"))


def test_without_data_those_of_the_checkpoint_are_embedded(media: Path, tmp_path) -> None:
    run = tmp_path / "run"
    mast.save_pretrained(
        mast.create_model("mast_pico", **AUDIO), run / "audio_encoder", frontend=mast.LogMel(num_mels=64)
    )
    shutil.copytree(run / "audio_encoder", tmp_path / "moved")
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"name": str(media), "clip_seconds": 0.5}}))
    rest = ["--output", str(tmp_path / "f.npz"), "--data.num_workers", "0"]
    embed_media(read_settings(EmbedConfig, ["--checkpoint", str(run), *rest]))
    assert "sound.wav" in read_features(tmp_path / "f.npz")["clip_id"].tolist()
    with pytest.raises(ValueError, match="give --data NAME"):
        embed_media(read_settings(EmbedConfig, ["--checkpoint", str(tmp_path / "moved"), *rest]))


@pytest.mark.parametrize("fusion", ["late", "bottleneck", None])
def test_classifiers_that_see_give_what_their_parts_see(fusion: str | None, media: Path, tmp_path) -> None:
    torch.manual_seed(0)
    sound = {"audio": "mast_pico", "audio_options": AUDIO, "frontend": {"num_mels": 64}} if fusion else {}
    small = {"width": 16, "heads": 2, "depth": 2} if fusion == "bottleneck" else None
    model = build_visual_classifier(
        labels={"x": ["a", "b"]}, video="tiny", num_frames=2, crop_size=32, fusion=fusion or "late", bottleneck=small,
        **sound,
    ).eval()  # fmt: skip
    save_classifier(tmp_path / "run", model)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"clip_seconds": 1.0, "frame_size": 40}}))
    # By itself, too, its crop is cut from frames of the size that evaluation takes.
    shutil.copytree(tmp_path / "run" / "classifier", tmp_path / "moved" / "classifier")
    given = config(tmp_path / "moved", media, tmp_path / "f.npz")
    assert embed_command.format_for(avssl.load(tmp_path / "moved"), given).frame_size == 40
    embed_media(config(tmp_path / "run", media, tmp_path / "f.npz"))
    rows = read_features(tmp_path / "f.npz")
    names = {"audio_features", "video_features", "fused_features"} if fusion else {"video_features"}
    assert {name for name in rows if name.endswith("features")} == names
    assert ("silent.mp4" in rows["clip_id"]) == (fusion is None)
    i = rows["clip_id"].tolist().index("0.mkv")
    assert rows["end"][i] - rows["start"][i] == pytest.approx(1.0)
    wave, frames = window(media / "0.mkv", rows["start"][i], rows["end"][i])
    with torch.no_grad():
        encoded = model.encode(model.frontend(wave) if model.frontend else None, frames)
    for name, expected in {"audio": encoded.audio, "video": encoded.video, "fused": encoded.features}.items():
        if f"{name}_features" in names:
            np.testing.assert_allclose(rows[f"{name}_features"][i], expected[0], atol=2e-5)
    with pytest.raises(ValueError, match=f"takes {'both' if fusion else 'video'}, not audio"):
        embed_media(config(tmp_path / "run", media, tmp_path / "g.npz", "--modalities", "audio"))


def test_a_stopped_run_continues_and_gives_the_same_file(pair_run: Path, media: Path, tmp_path, monkeypatch) -> None:
    options = ("--windows", "all", "--batch_size", "2", "--part_size", "2", "--modalities", "audio")
    embed_media(config(pair_run, media, tmp_path / "whole.parquet", *options))
    add, written = embed_command.FeatureParts.add, []

    def stop_at_the_second(self, *arguments) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[1])
        add(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embed_command.FeatureParts, "add", stop_at_the_second)
        embed_media(config(pair_run, media, tmp_path / "f.parquet", *options))
    assert written == [2, 4] and not (tmp_path / "f.parquet").exists()
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(embed_command.FeatureParts, "add", lambda self, *a: (done.append(a[1]), add(self, *a)))
        embed_media(config(pair_run, media, tmp_path / "f.parquet", *options))
    assert done[0] == 6
    assert pq.read_table(tmp_path / "f.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_the_precision_that_was_asked_for_is_used(pair_run: Path, media: Path, tmp_path) -> None:
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        embed_media(config(pair_run, media, tmp_path / "f.npz", "--runtime.precision", precision))
        found[precision] = read_features(tmp_path / "f.npz")["audio_embedding"]
    assert not np.array_equal(*found.values())
    np.testing.assert_allclose(*found.values(), atol=0.1)


def test_parts_of_other_settings_are_not_used(tmp_path) -> None:
    parts = embed_command.FeatureParts(tmp_path / "f.npz", {"seed": 1})
    table = {"clip_id": ["a", "b"], "x": embed_command.feature_column(np.ones((2, 3)))}
    parts.add(embed_command.pa.table(table), 3, [{"reason": "broken"}])
    again = embed_command.FeatureParts(tmp_path / "f.npz", {"seed": 1})
    assert (again.done, again.failures) == (3, [{"reason": "broken"}])
    again.add(embed_command.pa.table({}), 4, [{"reason": "gone"}])
    assert again.finish() == 2 and len(again.failures) == 2
    assert read_features(tmp_path / "f.npz")["x"].tolist() == [[1.0] * 3] * 2
    parts = embed_command.FeatureParts(tmp_path / "f.npz", {"seed": 1})
    parts.add(embed_command.pa.table(table), 3, [])
    assert embed_command.FeatureParts(tmp_path / "f.npz", {"seed": 2}).done == 0


@pytest.mark.parametrize(("modalities", "late", "one"), [("audio", [1.5, 2.5], 3), ("both", [1.5, 2.5], 0)])
def test_windows_lie_where_the_streams_run_that_are_needed(
    pair_run: Path, tmp_path, modalities: str, late: list[float], one: int
) -> None:
    options = {"audio_codec": "pcm_s16le", "size": (64, 48), "seconds": 3.5}
    wave = media_factory.noise(2.0, 16000)
    media_factory.write_media(tmp_path / "in" / "late.mov", waveform=wave, audio_start=1.5, **options)
    media_factory.write_media(
        tmp_path / "in" / "one.mov", waveform=media_factory.noise(3.0, 16000), frame_times=np.zeros(1), **options
    )
    output = tmp_path / "f.npz"
    summary = embed_media(config(pair_run, tmp_path / "in", output, "--modalities", modalities, "--windows", "all"))
    rows = read_features(output)
    starts = {name: rows["start"][rows["clip_id"] == name].tolist() for name in ("late.mov", "one.mov")}
    assert starts["late.mov"] == pytest.approx(late, abs=0.01) and len(starts["one.mov"]) == one
    reasons = {} if one else {"streams cover too little of the clip": 1}
    assert summary["left_out"]["reasons"] == reasons and summary["cut_short"] == 0
    rows = [{"clip_id": "part", "path": "late.mov", "start": 0.5, "end": 2.6}]
    Manifest.from_rows(rows, tmp_path / "in").save(tmp_path / "part.parquet")
    summary = embed_media(config(pair_run, tmp_path / "part.parquet", output, "--modalities", modalities))
    assert summary["cut_short"] == 1 and read_features(output)["start"] == pytest.approx([1.55], abs=0.01)


def test_the_channel_is_that_of_training_or_as_asked_for(pair_run: Path, tmp_path) -> None:
    wave, options = media_factory.noise(2.0, 16000), {"video_codec": None, "audio_codec": "pcm_s16le"}
    media_factory.write_media(tmp_path / "one" / "a.wav", waveform=wave, **options)
    media_factory.write_media(tmp_path / "two" / "a.wav", waveform=np.stack([wave, -wave]), layout="stereo", **options)

    def features(folder: str, *more: str) -> np.ndarray:
        embed_media(config(pair_run, tmp_path / folder, tmp_path / "f.npz", "--modalities", "audio", *more))
        return read_features(tmp_path / "f.npz")["audio_features"]

    expected = features("one")
    assert not np.array_equal(features("two"), expected)
    np.testing.assert_array_equal(features("two", "--data.channel", "0"), expected)
    assert json.loads((tmp_path / "f.json").read_text())["channel"] == 0


def test_files_that_break_off_are_told_and_their_windows_are_full(pair_run: Path, media: Path, tmp_path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    whole = (media / "0.mkv").read_bytes()
    (folder / "good.mkv").write_bytes(whole)
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    summary = embed_media(config(pair_run, folder, tmp_path / "f.npz", "--windows", "all", "--modalities", "audio"))
    assert summary["warnings"] == {"file cut off": 1} and summary["left_out"]["count"] == 0
    ids = read_features(tmp_path / "f.npz")["clip_id"].tolist()
    assert 0 < ids.count("cut.mkv") < ids.count("good.mkv")


def test_files_that_break_while_they_are_read_are_listed(pair_run: Path, media: Path, tmp_path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    whole = bytearray((media / "0.mkv").read_bytes())
    (folder / "good.mkv").write_bytes(whole)
    middle = len(whole) // 2
    whole[middle : middle + 20_000] = bytes(20_000)
    (folder / "hole.mkv").write_bytes(whole)
    summary = embed_media(config(pair_run, folder, tmp_path / "f.npz", "--windows", "all", "--modalities", "audio"))
    items = summary["left_out"]["items"]
    assert items and {item["clip_id"] for item in items} == {"hole.mkv"}
    assert summary["embedded"] + len(items) == summary["windows"]
    assert len(read_features(tmp_path / "f.npz")["clip_id"]) == summary["embedded"]


def test_what_cannot_be_done_is_told(pair_run: Path, media: Path, tmp_path) -> None:
    for options, error, told in (
        (["--data.split", "west"], ValueError, "data.split"),
        (["--data.split", "val"], DataError, "no clip to embed in split val"),
        (["--batch_size", "0"], ValueError, "batch_size"),
        (["--windows", "all", "--hop", "-1"], ValueError, "hop: must be above 0, got -1"),
        (["--runtime.devices", "2"], ValueError, "runtime.devices: is for training"),
    ):
        with pytest.raises(error, match=told):
            embed_media(config(pair_run, media, tmp_path / "f.npz", *options))
    with pytest.raises(ValueError, match=r"\.parquet or \.npz"):
        embed_media(config(pair_run, media, tmp_path / "f.csv"))
    with pytest.raises(FileNotFoundError):
        embed_media(config(tmp_path / "nowhere", media, tmp_path / "f.npz"))
    assert not list(tmp_path.glob("f.*"))
