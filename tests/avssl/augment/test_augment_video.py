"""Augmentation of frames, measured: shapes of crops, hue against rotations of RGB, blur against torchvision's."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torchvision.transforms.functional import adjust_hue
from torchvision.transforms.functional import gaussian_blur as one_blur

from avssl.augment import VideoAugment
from avssl.augment.video import gaussian_blur, turn_hue

STILL = {"crop_scale": 1.0, "flip": 0.0, "color": 0.0}
EVERYTHING = {
    "crop_scale": 0.3,
    "flip": 0.5,
    "color": 0.4,
    "gray": 0.3,
    "crop_ratio": 2.0,
    "hue": 0.3,
    "blur": 0.7,
    "blur_sigma": (0.5, 2.0),
}


def clips(batch: int, time: int = 3, side: int = 32) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (batch, 3, time, side, side), dtype=torch.uint8)


def sides(out: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the crops of :func:`ramps`, as shares of the frame, read off their slopes."""
    size = out.shape[-1]
    unit = 255 / 256 * size / (size - 1)
    return (
        (out[:, 0, 0, :, -1] - out[:, 0, 0, :, 0]).mean(1) * unit,
        (out[:, 1, 0, -1] - out[:, 1, 0, 0]).mean(1) * unit,
    )


def ramps(batch: int) -> Tensor:
    """Frames whose red is the column and whose green is the row."""
    place = torch.arange(256, dtype=torch.uint8)
    frame = torch.stack([place.expand(256, 256), place[:, None].expand(256, 256), torch.zeros(256, 256).byte()])
    return frame[None, :, None].expand(batch, 3, 1, 256, 256)


def test_crops_keep_their_area_and_fit_whatever_their_ratio() -> None:
    torch.manual_seed(0)
    out = VideoAugment(64, crop_scale=0.25, flip=0.0, color=0.0, crop_ratio=2.0).train()(ramps(300))
    width, height = sides(out)
    area, ratio = width * height, width / height
    torch.manual_seed(0)
    torch.testing.assert_close(area, torch.empty(300).uniform_(0.25, 1), atol=0.01, rtol=0)
    assert width.max() < 1.005 and height.max() < 1.005
    assert ratio.min() < 0.6 and ratio.max() > 1.6 and ratio.min() > 0.49 and ratio.max() < 2.05
    assert abs(ratio.log().mean()) < 0.1  # as often wide as tall
    assert ratio[area > 0.95].log().abs().max() < 0.06  # nearly all of a frame cannot be far from its shape


def test_ratio_of_one_keeps_the_shape_of_the_frame() -> None:
    torch.manual_seed(0)
    width, height = sides(VideoAugment(64, crop_scale=0.25, flip=0.0, color=0.0).train()(ramps(50)))
    torch.testing.assert_close(width, height, atol=2e-3, rtol=0)
    assert width.std() > 0.05


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.27, 0.5])
def test_hue_turns_about_the_gray_axis(turn: float) -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 3, 2, 5, 5, dtype=torch.float64)
    matrix = Rotation.from_rotvec(2 * math.pi * turn * np.ones(3) / math.sqrt(3)).as_matrix()
    expected = np.einsum("dc,bcthw->bdthw", matrix, frames.numpy()).clip(0, 1)
    np.testing.assert_allclose(turn_hue(frames, torch.full((2,), turn, dtype=torch.float64)), expected, atol=1e-12)


@pytest.mark.parametrize("third", [1, -1])
def test_a_third_of_the_circle_is_that_of_hsv(third: int) -> None:
    """Elsewhere a linear turn and HSV's differ; at thirds both exchange red, green and blue."""
    frame = clips(1)[0, :, 0].float() / 255
    out = turn_hue(frame[None, :, None], torch.tensor([third / 3]))[0, :, 0]
    torch.testing.assert_close(out, adjust_hue(frame, third / 3), atol=1e-4, rtol=0)


def test_hue_leaves_gray_alone_and_differs_between_clips() -> None:
    torch.manual_seed(0)
    frames = clips(1)[:, :, :1].expand(6, 3, 1, 32, 32)
    augment = VideoAugment(32, **STILL, hue=0.25).train()
    gray = frames[:, :1].expand_as(frames)
    torch.testing.assert_close(augment(gray), gray / 255, atol=1e-5, rtol=0)
    out = augment(frames)
    assert all((out[i] - out[j]).abs().max() > 2e-3 for i in range(6) for j in range(i))


def test_blur_is_torchvisions_with_a_width_for_each_clip() -> None:
    frames = clips(4).double() / 255
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0], dtype=torch.float64)
    out = gaussian_blur(frames, sigma, radius=6)
    for clip, blurred, width in zip(frames, out, sigma, strict=True):
        expected = one_blur(clip.transpose(0, 1), [13, 13], [width.item()]).transpose(0, 1)
        torch.testing.assert_close(blurred, expected, atol=1e-6, rtol=0)


def test_blur_spreads_a_point_by_its_sigma() -> None:
    frames = torch.zeros(1, 3, 1, 41, 41)
    frames[..., 20, 20] = 1
    profile = gaussian_blur(frames, torch.tensor([2.0]), radius=12)[0, 0, 0].sum(0)
    place = torch.arange(41) - 20.0
    assert profile.sum().item() == pytest.approx(1, abs=1e-5)
    assert (profile * place.square()).sum().item() == pytest.approx(4.0, rel=1e-3)


def test_blur_wider_than_the_frame_still_works() -> None:
    out = VideoAugment(4, **STILL, blur=1.0, blur_sigma=(5.0, 5.0)).train()(clips(2, side=4))
    assert out.shape[-1] == 4 and out.std(dim=(3, 4)).max() < 0.2


def test_blur_hits_its_share_of_the_clips_and_leaves_the_others_bitwise() -> None:
    frames = clips(100, time=1)
    torch.manual_seed(0)
    plain = VideoAugment(32, **STILL).train()(frames)
    torch.manual_seed(0)  # the blur draws last
    out = VideoAugment(32, **STILL, blur=0.3, blur_sigma=(1.0, 2.0)).train()(frames)
    same = (out == plain).flatten(1).all(dim=1)
    assert 55 <= same.sum() <= 85
    assert (out.std(dim=(3, 4)) / plain.std(dim=(3, 4)))[~same].max() < 0.5


def test_with_everything_on_frames_of_a_clip_share_it_and_clips_differ() -> None:
    torch.manual_seed(0)
    picture = clips(1)[:, :, :1].expand(6, 3, 5, 32, 32)
    out = VideoAugment(24, **EVERYTHING).train()(picture)
    assert out.shape == (6, 3, 5, 24, 24) and out.dtype == torch.float32 and not out.requires_grad
    assert out.min() >= 0 and out.max() <= 1
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out), atol=1e-5, rtol=0)
    assert all((out[i] - out[j]).abs().max() > 0.05 for i in range(6) for j in range(i))


def test_one_clip_is_a_batch_and_evaluation_is_the_centre_crop() -> None:
    frames = clips(1)
    augment = VideoAugment(24, **EVERYTHING)
    assert augment.train()(frames).shape == (1, 3, 3, 24, 24)
    torch.testing.assert_close(augment.eval()(frames), frames[..., 4:28, 4:28].float() / 255, rtol=0, atol=0)


def test_what_is_off_draws_nothing() -> None:
    """So a recipe without the newer options sees the random numbers that it always saw: 4 for crops, 3 for colours."""
    frames = clips(5)
    torch.manual_seed(0)
    VideoAugment(24, crop_scale=0.5, flip=0.5, color=0.2).train()(frames)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    for _ in range(4 + 3):
        torch.empty(5).uniform_()
    assert torch.equal(after, torch.get_rng_state())


def test_autocast_does_not_move_pixels() -> None:
    augment, frames = VideoAugment(24, **EVERYTHING).train(), clips(3)
    torch.manual_seed(0)
    expected = augment(frames)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(frames), expected)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"crop_ratio": 0.5}, r"crop_ratio: must lie in \[1, 10\], got 0.5"),
        ({"hue": 0.6}, r"hue: must lie in \[0, 0.5\], got 0.6"),
        ({"blur": -0.1}, "blur: must lie in"),
        ({"blur_sigma": (2.0, 1.0)}, r"blur_sigma: must lie in \[0.01, 50\], the smaller first, got \[2.0, 1.0\]"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"hue": math.nan}, "hue"),
    ],
)
def test_settings_out_of_range_are_named(options, told) -> None:
    with pytest.raises(ValueError, match=rf"augment\.{told}"):
        VideoAugment(8, **options)
