"""Duplicates across splits: by YouTube id, by bytes, by sound in any codec; and nothing where sounds only resemble."""

from pathlib import Path

import numpy as np
import pytest
import soxr
from media_factory import noise, tone, write_media

from avssl.data.health import duplicates_report, find_duplicates
from avssl.data.inspection import DIFFERENT_BITS, WORDS, different_bits, fingerprint, same_sounds
from avssl.data.manifest import Manifest
from avssl.data.media import read_audio

RATE = 16000


def stacked(*prints: np.ndarray | None) -> np.ndarray:
    return np.stack([np.zeros(WORDS, dtype=np.uint32) if words is None else words for words in prints])


def test_bits_are_the_signs_of_the_paper() -> None:
    """Equation 1 of Haitsma & Kalker, written out for single bits."""
    sound = noise(2.0, RATE, 3)
    words = fingerprint(sound, RATE)
    assert words is not None
    size, hop = round(0.37 * RATE), round(0.1 * RATE)
    hz = np.geomspace(300, 2000, 34)

    def energy(frame: int, band: int) -> float:
        spectrum = np.fft.rfft(sound[frame * hop : frame * hop + size] * np.hanning(size))
        low, high = (round(float(edge) * size / RATE) for edge in hz[band : band + 2])
        return float((np.abs(spectrum[low:high]) ** 2).sum())

    for n, m in [(1, 0), (4, 7), (9, 31), (12, 20)]:
        change = energy(n, m) - energy(n, m + 1) - (energy(n - 1, m) - energy(n - 1, m + 1))
        assert (int(words[n - 1]) >> m) & 1 == (change > 0), (n, m)


@pytest.mark.parametrize(
    ("codec", "ending", "rate"), [("libmp3lame", "mp3", 22050), ("libopus", "ogg", 48000), ("pcm_s16le", "wav", 8000)]
)
def test_copies_in_other_codecs_rates_and_levels_are_found(tmp_path: Path, codec: str, ending: str, rate: int) -> None:
    sounds = [noise(3.0, RATE, seed) for seed in range(20)]
    copy = soxr.resample(0.3 * sounds[7], RATE, rate)
    file = write_media(tmp_path / f"a.{ending}", video_codec=None, audio_codec=codec, sample_rate=rate, waveform=copy)
    prints = stacked(*(fingerprint(sound, RATE) for sound in sounds), fingerprint(read_audio(file).waveform, RATE))
    groups = same_sounds(prints, np.asarray([0] * 20 + [1]))
    assert np.flatnonzero(groups >= 0).tolist() == [7, 20] and groups[7] == groups[20]
    assert (same_sounds(prints, np.zeros(21, dtype=np.int64)) < 0).all(), "of one split: no leak"


def test_silence_and_short_sounds_match_nothing() -> None:
    assert fingerprint(np.zeros(3 * RATE, dtype="f4"), RATE) is None
    assert fingerprint(noise(0.9, RATE), RATE) is None
    padded = [np.concatenate([noise(1.5, RATE, seed), np.zeros(4 * RATE, dtype="f4")]) for seed in (1, 2)]
    prints = stacked(*(fingerprint(sound, RATE) for sound in padded))
    assert np.count_nonzero(prints[0]) < 20
    assert different_bits(prints[:1], prints[1:])[0] > DIFFERENT_BITS, "common silence is no likeness"


def test_a_group_holds_all_copies() -> None:
    one, other = (fingerprint(noise(3.0, RATE, seed), RATE) for seed in (1, 2))
    groups = same_sounds(stacked(one, other, one, None, other, one), np.asarray([0, 1, 1, 1, 1, 2]))
    assert groups[0] == groups[2] == groups[5] >= 0 and (groups[[1, 3, 4]] == -1).all()
    assert same_sounds(np.zeros((0, WORDS), dtype=np.uint32), np.zeros(0, dtype=np.int64)).shape == (0,)


def test_bytes_spans_and_youtube_ids(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_media(tmp_path / f"{name}.wav", video_codec=None, audio_codec="pcm_s16le",
                    waveform=tone(1.0, RATE, {"a": 440.0, "b": 440.0, "c": 550.0}[name]))  # fmt: skip
    rows = [
        {"path": "a.wav", "split": "train", "youtube_id": "one"},
        {"path": "b.wav", "split": "test", "youtube_id": "two"},  # the bytes of a
        {"path": "c.wav", "split": "test", "youtube_id": None},  # as long, other bytes
        {"path": "a.wav", "split": "test", "start": 0.5, "end": 1.0, "youtube_id": "one"},  # another span
        {"path": "b.wav", "split": "train", "start": 0.0, "end": 0.4, "youtube_id": None},
        {"path": "gone.wav", "split": "train", "youtube_id": "three"},
        {"path": "lost.wav", "split": "test", "youtube_id": "four"},
    ]
    manifest = Manifest.from_rows([{"clip_id": str(k), **row} for k, row in enumerate(rows)], tmp_path)
    twins = find_duplicates(manifest, np.zeros((len(rows), WORDS), dtype=np.uint32))
    assert twins.bytes is not None and twins.youtube is not None
    assert np.flatnonzero(twins.bytes >= 0).tolist() == [0, 1]
    assert np.flatnonzero(twins.youtube >= 0).tolist() == [0, 3]
    report = duplicates_report(manifest, twins)
    assert report["same_bytes"] == {"clips": 2, "groups": 1, "examples": [[["train", "a.wav"], ["test", "b.wav"]]]}
    assert report["same_youtube_id"]["clips"] == 2 and report["same_sound"] == {"clips": 0, "groups": 0, "examples": []}
    assert find_duplicates(manifest, None).rows().tolist() == [True, False, False, True, False, False, False]


@pytest.mark.realdata
def test_a_real_pair_of_one_recording_and_no_other(real_data: Path) -> None:
    """ESC-10's 2-28314-A and 2-30322-A are takes of one fire; two hundred others are unlike each other."""
    files = sorted(real_data.glob("esc10/*/2-*.ogg"))
    prints = stacked(*(fingerprint(read_audio(file, 0.0, 5.0).waveform, RATE) for file in files))
    groups = same_sounds(prints, np.arange(len(files)))
    assert [files[k].name for k in np.flatnonzero(groups >= 0)] == ["2-28314-A.ogg", "2-30322-A.ogg"]
