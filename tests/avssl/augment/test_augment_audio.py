"""Augmentation of waveforms, measured in dB and in slopes of spectra; torchaudio's ``add_noise`` is the reference."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.functional import add_noise

from avssl.augment import WaveAugment, colored_noise, mix_background
from avssl.augment.mixing import level

OFF = {"gain_db": 0.0}


def waves(batch: int, samples: int = 4000) -> Tensor:
    """Noise of different loudness."""
    torch.manual_seed(1)
    return torch.randn(batch, samples) * torch.logspace(-2, -0.5, batch)[:, None]


def decibels(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * torch.log10(signal.square().mean(1) / noise.square().mean(1))


def test_background_is_one_other_clip_at_a_ratio_within_the_range() -> None:
    wave = waves(40)
    torch.manual_seed(0)
    added = WaveAugment(**OFF, mix=1.0, mix_db=(3.0, 9.0)).train()(wave) - wave
    ratio = decibels(wave, added)
    assert ratio.min() > 3 - 0.01 and ratio.max() < 9 + 0.01 and ratio.std() > 1
    unit = torch.nn.functional.normalize(wave, dim=1)
    likeness = torch.nn.functional.normalize(added, dim=1) @ unit.T
    best = likeness.max(dim=1)
    assert best.values.min() > 0.999  # all of what is added is that one clip
    assert (best.indices != torch.arange(40)).all()
    assert best.indices.unique().numel() > 15  # each draws its own
    expected = add_noise(wave, wave[best.indices], ratio)
    torch.testing.assert_close(wave + added, expected, atol=1e-5, rtol=1e-4)


def test_clips_without_background_are_left_bitwise() -> None:
    wave = waves(200, 500)
    torch.manual_seed(0)
    out = WaveAugment(**OFF, mix=0.3).train()(wave)
    same = (out == wave).all(dim=1)
    assert 115 <= same.sum() <= 165


@pytest.mark.parametrize("silent", [0.0, 1e-5])
def test_silence_is_no_background_and_gets_none_but_silence(silent: float) -> None:
    wave = torch.stack([torch.randn(1000), torch.full((1000,), silent)])
    out = mix_background(wave, 1.0, (0.0, 0.0))
    assert torch.equal(out[0], wave[0])
    assert out[1].abs().max() <= 10 * silent and out.isfinite().all()


def test_one_clip_has_no_background() -> None:
    wave = waves(1)
    assert torch.equal(WaveAugment(**OFF, mix=1.0).train()(wave), wave)


@pytest.mark.parametrize("samples", [8000, 8001])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_coloured_noise_falls_by_its_exponent(exponent: float, samples: int) -> None:
    torch.manual_seed(0)
    noise = colored_noise(torch.zeros(64, samples), torch.full((64,), exponent))
    assert noise.shape == (64, samples)
    torch.testing.assert_close(noise.square().mean(1), torch.ones(64))
    power = np.abs(np.fft.rfft(noise.numpy(), axis=1)) ** 2
    frequency = np.fft.rfftfreq(samples)
    heard = frequency >= 20 / 16000
    slope = np.polyfit(np.log(frequency[heard]), np.log(power.mean(0)[heard]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)
    assert power[:, ~heard].max() < 1e-6 * power.max()  # neither a rumble nor an offset


@pytest.mark.parametrize("color", ["pink", "brown", "random"])
def test_coloured_noise_has_the_ratio_drawn(color: str) -> None:
    wave = waves(50)
    torch.manual_seed(0)
    added = WaveAugment(**OFF, noise_db=-10.0, noise_color=color).train()(wave) - wave
    torch.manual_seed(0)
    drawn = torch.empty(50).uniform_(-10, 30)
    torch.testing.assert_close(decibels(wave, added), drawn, atol=0.05, rtol=0)


def test_random_colour_differs_between_clips() -> None:
    wave = torch.ones(30, 8000)
    torch.manual_seed(0)
    added = WaveAugment(**OFF, noise_db=0.0, noise_color="random").train()(wave) - wave
    power = np.abs(np.fft.rfft(added.numpy(), axis=1)) ** 2
    low = power[:, 10:200].sum(1) / power[:, 10:].sum(1)
    assert low.min() < 0.2 and low.max() > 0.8


def test_white_noise_and_gain_are_drawn_as_ever() -> None:
    wave = waves(6)
    torch.manual_seed(0)
    out = WaveAugment(gain_db=3.0, time_shift=0.0, noise_db=20.0).train()(wave)
    torch.manual_seed(0)
    ratio = torch.empty(6).uniform_(20, 60)[:, None]
    noisy = wave + torch.randn(6, 4000) * wave.square().mean(dim=1, keepdim=True).sqrt() * 10 ** (-ratio / 20)
    assert torch.equal(out, noisy * 10 ** (torch.empty(6).uniform_(-3, 3)[:, None] / 20))


def test_shift_and_mix_keep_their_order_and_one_clip_is_a_batch() -> None:
    everything = WaveAugment(
        gain_db=6.0, time_shift=0.5, noise_db=10.0, noise_color="pink", mix=0.5, mix_db=(0.0, 10.0)
    )
    for batch in (1, 3):
        wave = waves(batch, 1001)
        out = everything.train()(wave)
        assert out.shape == wave.shape and out.isfinite().all() and not out.requires_grad
        assert everything.eval()(wave) is wave


def test_off_is_the_identity_bitwise() -> None:
    wave = waves(4)
    assert torch.equal(WaveAugment(gain_db=0.0, time_shift=0.0, noise_db=None).train()(wave), wave)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mix": 1.5}, r"mix: must lie in \[0, 1\], got 1.5"),
        ({"mix_db": (10.0, 0.0)}, r"mix_db: must lie in \[-60, 100\], the smaller first"),
        ({"noise_color": "blue"}, "noise_color: must be one of white, pink, brown, random, got 'blue'"),
        ({"noise_db": math.inf}, "noise_db"),
    ],
)
def test_settings_out_of_range_are_named(options, told) -> None:
    with pytest.raises(ValueError, match=rf"augment\.{told}"):
        WaveAugment(**options)


def test_a_shift_turns_the_sound_and_not_its_padding_and_noise_is_relative_to_the_sound() -> None:
    samples = torch.tensor([4000, 1000, 1])
    waveform = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    for clip, size in zip(waveform, samples.tolist(), strict=True):
        clip[size:] = 0
    shifted = WaveAugment(gain_db=0.0, time_shift=1.0)(waveform, samples)
    for before, after, size in zip(waveform, shifted, samples.tolist(), strict=True):
        torch.testing.assert_close(before[:size].sort().values, after[:size].sort().values)
        assert not after[size:].any()
    assert not torch.equal(shifted[1], waveform[1])
    loud = torch.zeros(400, 4000)
    loud[:, :400] = 1.0
    noisy = WaveAugment(gain_db=0.0, noise_db=0.0)(loud, torch.full((400,), 400)) - loud
    levels = 20 * noisy.square().mean(dim=1).sqrt().log10()
    assert -41 < levels.min() < -38 and -2 < levels.max() < 1  # of the sound; of the whole clip it would be 10 dB less


def test_background_and_noise_are_relative_to_the_sound_not_to_its_padding() -> None:
    """Also noise over a background that goes on behind a short sound."""
    samples = torch.tensor([4000, 500])
    wave = waves(2) * (torch.arange(4000) < samples[:, None])
    out = mix_background(wave, 1.0, (6.0, 6.0), samples)
    ratio = level(wave, samples) / level(out - wave, samples[[1, 0]])
    torch.testing.assert_close(20 * ratio.log10(), torch.full((2,), 6.0), atol=1e-3, rtol=0)
    torch.manual_seed(2)
    mixed = WaveAugment(**OFF, mix=1.0, mix_db=(0.0, 0.0))(wave, samples)
    torch.manual_seed(2)
    noisy = WaveAugment(**OFF, mix=1.0, mix_db=(0.0, 0.0), noise_db=20.0)(wave, samples)
    ratio = 20 * (level(mixed, samples) / level(noisy - mixed)).log10()
    assert (ratio > 19).all() and (ratio < 61).all()
