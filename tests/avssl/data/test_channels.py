"""Two channels that are each other's opposite: their mean is told to be silence, one of them reaches every reader."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_factory import noise, write_media

from avssl.commands.cache import cache
from avssl.commands.extract_audio import extract_all
from avssl.commands.prepare import prepare
from avssl.config import CacheConfig, DataConfig, PrepareOptions, SourceConfig
from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.data.failures import DataError
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.media import MediaError, read_audio
from avssl.data.scan import scan
from avssl.data.shards.sample import open_source
from avssl.data.splits import open_splits
from avssl.data.stats import logmel_stats

WAVE = noise(2.0, 16000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels")
    options: dict[str, Any] = {"video_codec": None, "audio_codec": "pcm_s16le", "layout": "stereo"}
    write_media(folder / "train" / "opposite" / "a.wav", waveform=np.stack([WAVE, -WAVE]), **options)
    return folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def scanned(root: Path) -> Manifest:
    rows = [{"clip_id": "a", "path": "train/opposite/a.wav", "split": "train"}]
    return scan(Manifest.from_rows(rows, root), workers=0, progress=False)


@pytest.mark.parametrize(("channel", "sign"), [("mean", 0), (0, 1), (1, -1)])
def test_training_and_evaluation_hear_the_channel_of_the_config(root: Path, channel: Any, sign: int) -> None:
    config = DataConfig(name=str(root), clip_seconds=2.0, channel=channel, num_workers=0)
    splits = open_splits(config, modalities=("audio",), labelled=False)
    loaders = Loaders(config, splits.protocol, ("audio",), 16000, 1, 0)
    (batch,) = loaders.evaluate(splits.train)
    np.testing.assert_allclose(batch.audio[0].numpy(), sign * WAVE, atol=1e-4)


def test_a_deep_look_says_that_channels_cancel(root: Path, tmp_path: Path) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"workers": 0, "deep": True, "clip_seconds": 1.0, "progress": False}
    report = prepare(PrepareOptions(str(root), tmp_path / "a.parquet", **options), told.append)
    assert report["findings"]["cancel"]["clips"] == 1 and report["findings"]["silent"]["clips"] == 0
    assert any("1 clips channels cancel" in line and "data.channel" in line for line in told)
    report = prepare(PrepareOptions(str(root), tmp_path / "b.parquet", channel=1, **options), told.append)
    assert report["healthy"] == 1
    headers = prepare(PrepareOptions(str(root), tmp_path / "c.parquet", **options | {"deep": False}), told.append)
    assert headers["findings"]["cancel"]["clips"] is None


@pytest.mark.parametrize(("channel", "warnings"), [("mean", {"channels cancel": 1}), (0, {})])
def test_a_run_says_so_without_a_deep_look(root: Path, channel: Any, warnings: dict[str, int], caplog: Any) -> None:
    config = DataConfig(name=str(root), clip_seconds=1.0, channel=channel)
    splits = open_splits(config, modalities=("audio",), labelled=False)
    assert splits.coverage["train"]["warnings"] == warnings
    assert ("1 clips: channels cancel, so that their mean is silence" in caplog.text) == bool(warnings)


def test_statistics_are_of_the_channel(scanned: Manifest) -> None:
    both, one = (logmel_stats(scanned, 1.0, channel=channel, workers=0).mean for channel in ("mean", 0))
    assert one > both + 3


def test_a_cache_holds_one_channel_and_refuses_others(root: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "cache")
    config = CacheConfig(output, SourceConfig(name=str(root)), channel=1, workers=0)
    cache(config)
    cached = open_data(output)
    dataset = ClipDataset(cached, modalities=("audio",), clip_seconds=2.0, channel=1, mode="center")
    np.testing.assert_allclose(dataset[0, 0].clips[0].audio, -WAVE, atol=1e-4)
    assert len(open_splits(DataConfig(name=output, channel=1), modalities=("audio",), labelled=False).train) == 1
    with open_source(cached.row(0).path) as sample, pytest.raises(MediaError, match="another channel"):
        sample.audio(0.0, 1.0)
    with pytest.raises(DataError, match=r"data\.channel: mean, but .* holds 1"):
        open_splits(DataConfig(name=output), modalities=("audio",), labelled=False)
    with pytest.raises(DataError, match="other settings"):
        cache(CacheConfig(output, SourceConfig(name=str(root)), workers=0))


def test_extracted_sound_is_of_the_channel(scanned: Manifest, tmp_path: Path) -> None:
    summary = extract_all(scanned, tmp_path, channel=1, workers=0, progress=False)
    assert summary.extracted == 1
    np.testing.assert_allclose(read_audio(tmp_path / "train/opposite/a.flac", 0.0, 2.0).waveform, -WAVE, atol=1e-4)
    assert json.loads((tmp_path / "extract_audio.json").read_text())["settings"]["channel"] == 1
    with pytest.raises(DataError, match="was extracted with"):
        extract_all(scanned, tmp_path, workers=0, progress=False)
    with pytest.raises(ValueError, match="channel"):
        extract_all(scanned, tmp_path / "other", channel=-1, workers=0, progress=False)


def test_what_can_be_no_channel_is_refused_before_anything_is_read(root: Path, scanned: Manifest) -> None:
    with pytest.raises(ValueError, match=r"data\.channel: must be at least 0, got -1"):
        open_splits(DataConfig(name=str(root), channel=-1), modalities=("audio",), labelled=False)
    with pytest.raises(ValueError, match="channel"):
        ClipDataset(scanned, modalities=("audio",), clip_seconds=1.0, channel=-1)
    with pytest.raises(ValueError, match="channel"):
        cache(CacheConfig("never", SourceConfig(name=str(root)), channel=-1, workers=0))


def test_rows_without_the_channel_are_counted_and_left_out_at_opening(root: Path, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(root, tmp_path / "mixed"))
    for name in "bc":
        write_media(folder / f"train/mono/{name}.wav", waveform=WAVE, video_codec=None, audio_codec="pcm_s16le")
    kept = {"mean": 3, 0: 3, 1: 1}
    for channel, count in kept.items():
        config = DataConfig(name=str(folder), clip_seconds=2.0, channel=channel, num_workers=0)  # type: ignore[arg-type]
        splits = open_splits(config, modalities=("audio",), labelled=False)
        assert len(splits.train) == splits.coverage["train"]["usable"] == count
        assert splits.coverage["train"]["reasons"] == ({} if count == 3 else {"no such channel": 2})
    assert "1 of 3 clips usable (2 x no such channel)" in caplog.text
    assert len(open_splits(config, modalities=("video",), labelled=False, need_train=False).train) == 0
    options: dict[str, Any] = {"workers": 0, "channel": 1, "clip_seconds": 1.0, "progress": False}
    told: list[str] = []
    report = prepare(PrepareOptions(str(folder), tmp_path / "a.parquet", **options), told.append)
    assert report["usable"]["audio"] == 1 and report["stream_errors"]["no such channel"]["clips"] == 2
    assert any("2 clips: no such channel" in line for line in told)


def test_a_channel_that_is_not_there_is_a_counted_failure(scanned: Manifest) -> None:
    dataset = ClipDataset(scanned, modalities=("audio",), clip_seconds=1.0, channel=2, mode="center")
    assert [failure.reason for failure in dataset[0, 0].failures] == ["no such channel"]
