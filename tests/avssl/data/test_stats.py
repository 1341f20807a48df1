"""Statistics of the log-mel: those of a direct computation, whatever the number of workers, failures counted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from media_factory import noise, write_media

import mast
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.media import read_audio
from avssl.data.scan import scan
from avssl.data.stats import logmel_stats

RATE = 16000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("stats")
    rows = []
    for k, seconds in enumerate((0.5, 1.0, 2.0, 3.0, 0.7, 1.3)):
        sound = noise(seconds, RATE, k, cutoff=1000.0 * (k + 1)) * 0.2 * (k + 1)
        write_media(root / f"{k}.wav", video_codec=None, audio_codec="pcm_s16le", waveform=sound)
        rows.append({"clip_id": str(k), "path": f"{k}.wav"})
    write_media(root / "tiny.wav", video_codec=None, audio_codec="pcm_s16le", waveform=noise(0.02, RATE))
    rows.append({"clip_id": "tiny", "path": "tiny.wav"})
    write_media(root / "silent.mp4", audio_codec=None)
    rows.append({"clip_id": "silent", "path": "silent.mp4"})
    return scan(Manifest.from_rows(rows, root), workers=0)


def test_equal_to_all_values_in_one_tensor(manifest: Manifest) -> None:
    frontend = mast.LogMel(RATE, 64, mean=None, std=None)
    files = [manifest.root / f"{k}.wav" for k in range(6)]
    values = torch.cat(
        [frontend(torch.from_numpy(read_audio(file).waveform)[None]).flatten() for file in files]
    ).double()
    stats = logmel_stats(manifest, 10.0, sample_rate=RATE, num_mels=64, workers=0)
    assert stats.mean == pytest.approx(float(values.mean()), abs=1e-9)
    assert stats.std == pytest.approx(float(values.std(unbiased=False)), abs=1e-9)
    assert (stats.clips, stats.failed, stats.reasons) == (6, 1, {"shorter than a window": 1})
    assert stats.hours * 3600 == pytest.approx(8.5, abs=0.2)
    assert stats.options.startswith(f"--audio.mean {stats.mean:.4f} --audio.std {stats.std:.4f}")


def test_a_normalized_set_has_mean_0_and_deviation_a_half(manifest: Manifest) -> None:
    """What the options are for: the frontend with them, on the same sounds."""
    stats = logmel_stats(manifest, 10.0, sample_rate=RATE, num_mels=32, workers=0)
    frontend = mast.LogMel(RATE, 32, mean=stats.mean, std=stats.std)
    values = torch.cat(
        [frontend(torch.from_numpy(read_audio(manifest.root / f"{k}.wav").waveform)[None]).flatten() for k in range(6)]
    )
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-4) and float(values.std()) == pytest.approx(0.5, abs=1e-3)


def test_sampling_is_seeded_and_independent_of_workers(manifest: Manifest) -> None:
    options = {"sample_rate": RATE, "num_mels": 16, "clips": 3}
    here = logmel_stats(manifest, 0.4, workers=0, seed=1, **options)
    assert here == logmel_stats(manifest, 0.4, workers=2, seed=1, **options)
    assert here.clips + here.failed == 3
    assert here.mean != logmel_stats(manifest, 0.4, workers=0, seed=2, **options).mean


def test_files_that_went_away_are_counted(manifest: Manifest, tmp_path: Path) -> None:
    for file in manifest.root.glob("[0-4].wav"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    moved = Manifest(manifest.table, tmp_path)
    stats = logmel_stats(moved, 10.0, workers=0)
    assert (stats.clips, stats.failed) == (5, 2) and stats.reasons == {"file not found": 2}
    with pytest.raises(DataError, match="none of 7 clips could be read"):
        logmel_stats(Manifest(manifest.table, tmp_path / "nowhere"), 10.0, workers=0)


def test_bad_options(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="clips >= 1"):
        logmel_stats(manifest, 1.0, clips=0)
    with pytest.raises(ValueError, match="num_mels"):
        logmel_stats(manifest, 1.0, num_mels=0)
    with pytest.raises(DataError, match="no clip with sound"):
        logmel_stats(manifest.select(mask=np.asarray(manifest.column("clip_id")) == "silent"), 1.0, workers=0)
