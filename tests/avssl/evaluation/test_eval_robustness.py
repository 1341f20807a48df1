"""Every damage does what its name says, in decibels, hertz and shares."""

import numpy as np
import pytest
import torch

import avssl  # noqa: F401
from avssl.data.batch import Batch
from avssl.evaluation.robustness import damaged, degradations, through_codec

RATE = 16000
BY_NAME = {damage.name: damage for damage in degradations(RATE)}


def chirp(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time)).astype(np.float32)


def decibels(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


def hear(name: str, wave: np.ndarray, clip: str = "clip", seed: int = 0) -> np.ndarray:
    return BY_NAME[name](wave, RATE, clip, seed)


@pytest.mark.parametrize("name", BY_NAME)
def test_length_type_and_randomness_of_the_clip_alone(name):
    wave = chirp()
    heard = hear(name, wave)
    assert heard.shape == wave.shape and heard.dtype == np.float32 and np.isfinite(heard).all()
    assert not np.array_equal(heard, wave)
    np.testing.assert_array_equal(heard, hear(name, wave))
    if BY_NAME[name].group in ("noise", "room", "gap"):
        assert not np.array_equal(heard, hear(name, wave, clip="other"))
        assert not np.array_equal(heard, hear(name, wave, seed=1))


@pytest.mark.parametrize("name", BY_NAME)
def test_silence_and_nothing_do_no_harm(name):
    assert np.abs(hear(name, np.zeros(4000, np.float32))).max() < 1e-3
    assert hear(name, np.zeros(0, np.float32)).shape == (0,)
    assert np.isfinite(hear(name, np.zeros(1, np.float32))).all()


@pytest.mark.parametrize("snr", [20, 10, 0, -5])
def test_noise_has_the_ratio_named(snr):
    wave = chirp(4)
    assert decibels(wave) - decibels(hear(f"noise, SNR {snr} dB", wave) - wave) == pytest.approx(snr, abs=0.15)


@pytest.mark.parametrize("seconds", [0.3, 0.8, 2.0])
def test_reverberation_of_a_click_falls_by_60_db_in_its_time(seconds):
    click = np.zeros(3 * RATE, np.float32)
    click[0] = 1
    tail = hear(f"reverberation, {seconds:g} s", click)
    early, late = 0.25 * seconds, 0.75 * seconds
    width = round(0.1 * seconds * RATE)
    fall = decibels(tail[round(early * RATE) :][:width]) - decibels(tail[round(late * RATE) :][:width])
    assert fall == pytest.approx(30, abs=2)  # half of the time, half of the 60 dB
    assert decibels(tail) == pytest.approx(decibels(click), abs=0.01)


@pytest.mark.parametrize(
    ("name", "kept", "lost"),
    [("low-pass 4 kHz", 1000, 7000), ("high-pass 500 Hz", 2000, 60), ("telephone band", 1000, 60),
     ("telephone band", 1000, 7000)],
)  # fmt: skip
def test_bands(name, kept, lost):
    time = np.arange(RATE) / RATE
    inside, outside = (np.sin(2 * np.pi * frequency * time).astype(np.float32) for frequency in (kept, lost))
    middle = slice(RATE // 4, None)  # after the filter has settled
    assert decibels(hear(name, inside)[middle]) == pytest.approx(decibels(inside[middle]), abs=0.2)
    assert decibels(hear(name, outside)[middle]) < decibels(outside[middle]) - 40


def test_level_clipping_and_gaps():
    wave = chirp()
    assert decibels(hear("gain -20 dB", wave)) == pytest.approx(decibels(wave) - 20, abs=0.1)
    assert (hear("gain -40 dB", np.full(9, 1e-4, np.float32)) == 0).all()  # below half a step of 16 bits
    clipped = hear("clipped, 25% of samples", wave)
    assert (np.abs(clipped) == np.abs(clipped).max()).mean() == pytest.approx(0.25, abs=0.01)
    gap = hear("50% missing", np.ones(1000, np.float32))
    assert gap.sum() == 500 and np.abs(np.diff(gap)).sum() <= 2


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize(("codec", "bit_rate"), [("mp3", 32000), ("opus", 24000)])
def test_codecs_stay_on_the_samples(codec, bit_rate, rate):
    wave = chirp(0.8, rate)
    heard = through_codec(wave, rate, codec, bit_rate)
    inner = slice(800, len(wave) - 800)
    lags = range(-60, 61)
    match = [float(wave[inner] @ heard[inner.start + lag : inner.stop + lag]) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    assert np.corrcoef(wave[inner], heard[inner])[0, 1] > 0.98


def test_filters_beyond_half_the_rate_are_left_out():
    names = {damage.name for damage in degradations(8000)}
    assert "low-pass 4 kHz" not in names and "telephone band" in names
    assert "telephone band" not in {damage.name for damage in degradations(6000)}


def test_all_that_the_media_cover_is_damaged_and_padding_alone_is_not() -> None:
    """A gap within a clip is no end of it."""
    wave = chirp()
    wave[4000:8000] = 0
    none = torch.zeros(1)
    samples = torch.tensor([12000])  # a quarter is a gap, another is padding
    wave[12000:] = 0
    batch = Batch(torch.from_numpy(wave)[None], None, {}, none.long(), ["clip"], none.double(), samples=samples)
    heard = damaged(batch, BY_NAME["gain -20 dB"], RATE, 0).audio[0].numpy()
    np.testing.assert_allclose(heard, wave / 10, atol=2e-5)
