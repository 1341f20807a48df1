"""Augmentation: what it changes, what it must leave, and that its draws are each clip's own."""

import pytest
import torch

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment, mixup


def test_video_evaluation_is_the_centre_crop() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 20, 24), dtype=torch.uint8)
    out = VideoAugment(16).eval()(frames)
    torch.testing.assert_close(out, frames[..., 2:18, 4:20].float() / 255)


def test_video_without_strength_only_resizes() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    out = VideoAugment(16, crop_scale=1.0, flip=0.0, color=0.0).train()(frames)
    torch.testing.assert_close(out, frames.float() / 255, atol=1e-5, rtol=0)


def test_a_flip_mirrors() -> None:
    frames = torch.randint(0, 256, (1, 3, 2, 16, 16), dtype=torch.uint8)
    out = VideoAugment(16, crop_scale=1.0, flip=1.0, color=0.0).train()(frames)
    torch.testing.assert_close(out, frames.flip(-1).float() / 255, atol=1e-5, rtol=0)


def test_gray_clips_have_no_colour_and_others_keep_theirs() -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (40, 3, 2, 16, 16), dtype=torch.uint8)
    out = VideoAugment(16, crop_scale=1.0, flip=0.0, color=0.0, gray=0.5).train()(frames)
    gray = (out - out[:, :1]).abs().amax(dim=(1, 2, 3, 4)) < 1e-6
    assert 8 <= gray.sum() <= 32
    torch.testing.assert_close(out[~gray], frames[~gray].float() / 255, atol=1e-5, rtol=0)


def test_frames_of_a_clip_share_a_crop_and_clips_differ() -> None:
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (1, 3, 1, 32, 32), dtype=torch.uint8)
    out = VideoAugment(24, crop_scale=0.3, flip=0.5, color=0.4).train()(picture.expand(4, 3, 5, 32, 32))
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out))
    assert (out[0] - out[1]).abs().max() > 0.05
    assert out.min() >= 0 and out.max() <= 1


def test_wave_gain_stays_in_bounds_and_shift_is_circular() -> None:
    torch.manual_seed(0)
    wave = torch.randn(64, 100)
    ratio = (WaveAugment(gain_db=6.0).train()(wave) / wave)[:, 0]
    assert ratio.min() >= 10 ** (-6 / 20) - 1e-6 and ratio.max() <= 10 ** (6 / 20) + 1e-6
    assert ratio.std() > 0.1
    shifted = WaveAugment(gain_db=0.0, time_shift=0.5).train()(wave)
    torch.testing.assert_close(shifted.sort(dim=1).values, wave.sort(dim=1).values)
    assert (shifted != wave).any(dim=1).float().mean() > 0.9


def test_noise_has_the_ratio_asked_for() -> None:
    torch.manual_seed(0)
    wave = torch.randn(200, 4000)
    noise = WaveAugment(gain_db=0.0, noise_db=0.0).train()(wave) - wave
    ratio = 10 * torch.log10(wave.square().mean(1) / noise.square().mean(1))
    assert ratio.min() > -0.5 and ratio.max() < 40.5
    assert 15 < ratio.mean() < 25


def test_spectrogram_masks_are_zero_and_bounded() -> None:
    torch.manual_seed(0)
    ones = torch.ones(32, 1, 40, 50)
    out = SpectrogramAugment(time_mask=0.2, freq_mask=0.0).train()(ones)
    masked = (out[:, 0, 0] == 0).sum(dim=1)
    assert masked.max() <= 11 and masked.float().std() > 0
    assert set(out.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("masks", [1, 3])
def test_spectrogram_masks_are_those_that_torchaudio_draws(masks: int) -> None:
    from torchaudio.functional import mask_along_axis_iid

    spectrogram = torch.randn(6, 1, 40, 50)
    torch.manual_seed(3)
    expected = spectrogram
    for _ in range(masks):
        expected = mask_along_axis_iid(expected, int(0.2 * 40) + 1, 0.0, axis=2)
        expected = mask_along_axis_iid(expected, int(0.3 * 50) + 1, 0.0, axis=3)
    augment = SpectrogramAugment(time_mask=0.3, freq_mask=0.2, masks=masks).train()
    torch.manual_seed(3)
    out = augment(spectrogram)
    assert torch.equal(out, expected) and not torch.equal(out, spectrogram)
    torch.manual_seed(3)
    assert augment(spectrogram, inplace=True) is spectrogram and torch.equal(spectrogram, expected)


@pytest.mark.gpu
def test_spectrogram_masks_on_a_gpu_are_whole_rows_and_columns() -> None:
    out = SpectrogramAugment(time_mask=0.3, freq_mask=0.2).train()(torch.ones(16, 1, 40, 50, device="cuda"))
    masked = out[:, 0] == 0
    rows, columns = masked.all(dim=2), masked.all(dim=1)
    assert torch.equal(masked, rows[:, :, None] | columns[:, None]) and rows.any() and columns.any()


def test_patch_drop_blanks_the_share_of_whole_patches() -> None:
    spectrogram = torch.rand(5, 1, 32, 64) + 1
    dropped = SpectrogramAugment(patch_drop=0.25, patch_size=(8, 16))(spectrogram)
    patches = dropped.view(5, 4, 8, 4, 16).transpose(2, 3).flatten(3)  # (B, 4, 4, pixels of a patch)
    blank = (patches == 0).all(dim=3)
    assert torch.equal(blank, (patches == 0).any(dim=3))  # whole patches only
    assert blank.flatten(1).sum(dim=1).tolist() == [4] * 5 and len({tuple(b.flatten().tolist()) for b in blank}) > 1
    assert torch.equal(dropped[dropped != 0], spectrogram[dropped != 0])
    with pytest.raises(ValueError, match=r"augment\.patch_drop"):
        SpectrogramAugment(patch_drop=1.5)
    with pytest.raises(ValueError, match=r"augment\.patch_size"):
        SpectrogramAugment(patch_size=(0, 16))


def test_spectrogram_warp_keeps_shape_and_moves_content() -> None:
    torch.manual_seed(0)
    x = torch.zeros(16, 1, 40, 50)
    x[:, :, 20] = 1.0
    out = SpectrogramAugment(spec_warp=1.0, time_mask=0, freq_mask=0).train()(x)
    assert out.shape == x.shape
    peaks = out.mean(dim=3).argmax(dim=2).flatten()
    assert peaks.unique().numel() > 3 and (peaks - 20).abs().max() <= 8


def test_evaluation_changes_nothing() -> None:
    wave, spectrogram = torch.randn(2, 100), torch.randn(2, 1, 40, 50)
    assert WaveAugment(gain_db=6.0, time_shift=0.5, noise_db=10.0).eval()(wave) is wave
    assert SpectrogramAugment(spec_warp=1.0, time_mask=0.5, freq_mask=0.5).eval()(spectrogram) is spectrogram


def test_mixup_blends_with_its_partner() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    mixed, partner, weight = mixup(x, 0.4)
    assert (weight >= 0.5).all() and (weight <= 1).all() and weight.std() > 0.01
    torch.testing.assert_close(mixed, x * weight[:, None] + x[partner] * (1 - weight[:, None]))


@pytest.mark.parametrize("build", [lambda: VideoAugment(8, crop_scale=0), lambda: WaveAugment(gain_db=-1)])
def test_bad_strength_is_named(build) -> None:
    with pytest.raises(ValueError, match=r"augment\.(crop_scale|gain_db)"):
        build()
