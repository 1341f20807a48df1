"""Video encoders: one interface for all, and the library's own outputs behind it."""

import copy
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import av
import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torchvision.models import video as zoo
from torchvision.models.video.swin_transformer import SwinTransformerBlock

from avssl.config import DataConfig, VideoConfig
from avssl.data.clips import center_square
from avssl.data.media.file import MediaFile
from avssl.loading import with_random_weights
from avssl.models import VideoEncoder, create_video_encoder, list_video_encoders
from avssl.models.backbones import DropPath
from avssl.models.blocks import encoder_blocks
from avssl.models.pair import AudioVisualPair, center_crop
from avssl.models.video import KINETICS_MEAN, KINETICS_STD, own_size
from avssl.models.visual_classifier import build_visual_classifier
from avssl.training.initialization import complete_video

SIZES = {"mvit_v2_s": (16, 224), "swin3d_t": (4, 64), "r2plus1d_18": (4, 56), "s3d": (16, 64)}
SIZES |= {"tiny": (8, 56), "tiny_motion": (8, 56)}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_encoder_gives_features(name: str) -> None:
    frames, size = SIZES[name]
    encoder = create_video_encoder(name, num_frames=frames, frame_size=size).eval()
    with torch.inference_mode():
        features = encoder(torch.rand(1, 3, frames, size, size))
    assert features.shape == (1, encoder.num_features)
    assert features.isfinite().all()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_no_dropout_of_a_classifier_is_left(name: str) -> None:
    frames, size = SIZES[name]
    encoder = create_video_encoder(name, num_frames=frames, frame_size=size)
    assert not [part for part in encoder.modules() if isinstance(part, nn.Dropout) and part.p > 0]


def test_all_are_listed() -> None:
    assert list_video_encoders() == sorted(SIZES)


def test_r2plus1d_is_torchvisions_without_its_head() -> None:
    torch.manual_seed(0)
    reference = zoo.r2plus1d_18().eval()
    encoder = create_video_encoder("r2plus1d_18", num_frames=4, frame_size=56).eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    encoder.backbone.load_state_dict(state, strict=True)
    frames = torch.rand(2, 3, 4, 56, 56)
    normalized = (frames - torch.tensor(KINETICS_MEAN).view(3, 1, 1, 1)) / torch.tensor(KINETICS_STD).view(3, 1, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(reference.fc(encoder(frames)), reference(normalized))


def test_mvit_is_torchvisions_without_its_head() -> None:
    torch.manual_seed(0)
    reference = zoo.mvit_v2_s().eval()
    encoder = create_video_encoder("mvit_v2_s").eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("head.")}
    encoder.backbone.load_state_dict(state, strict=True)
    reference.head = nn.Identity()
    frames = torch.randint(256, (1, 16, 3, 256, 256), dtype=torch.uint8)
    transforms = zoo.MViT_V2_S_Weights.KINETICS400_V1.transforms()
    with torch.inference_mode():
        found = encoder(center_crop(frames.transpose(1, 2), 224))
        torch.testing.assert_close(found, reference(transforms(frames)), rtol=1e-4, atol=1e-4)


WEIGHTS = {
    "mvit_v2_s": zoo.MViT_V2_S_Weights,
    "r2plus1d_18": zoo.R2Plus1D_18_Weights,
    "s3d": zoo.S3D_Weights,
    "swin3d_t": zoo.Swin3D_T_Weights,
}


def film(path: Path, width: int, height: int) -> MediaFile:
    """A second of smooth colours that move."""
    x, y = np.linspace(0, 7, width), np.linspace(0, 5, height)[:, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for time in range(16):
            waves = [np.sin(x + time / 4 + 0 * y), np.cos(y - time / 5 + 0 * x), np.sin(x * y / 8 + time / 3)]
            image = (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return MediaFile(path)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_sizes_and_statistics_are_those_of_torchvisions_weights(name: str) -> None:
    transforms = WEIGHTS[name].KINETICS400_V1.transforms()
    encoder = create_video_encoder(name)
    assert encoder.mean.flatten().tolist() == pytest.approx(list(transforms.mean))
    assert encoder.std.flatten().tolist() == pytest.approx(list(transforms.std))
    video, data = complete_video(VideoConfig(name), DataConfig())
    assert [video.crop_size] * 2 == transforms.crop_size
    assert data.frame_size == min(transforms.resize_size)


@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("mvit_v2_s", (342, 256), 1e-6),
        ("mvit_v2_s", (640, 480), 0.02),  # scaled by another filter
        ("swin3d_t", (342, 256), 1e-6),
        ("s3d", (256, 256), 1e-6),
        ("r2plus1d_18", (342, 256), 0.05),  # and half a pixel to the side
    ],
)
def test_from_the_file_to_the_features_it_is_torchvisions(name: str, size, tolerance: float, tmp_path) -> None:
    torch.manual_seed(0)
    number = 2
    video, data = complete_video(VideoConfig(name), DataConfig(num_frames=number))
    source, times = film(tmp_path / "film.mp4", *size), np.array([0.2, 0.7])
    whole = torch.from_numpy(source.frames(times)).permute(0, 3, 1, 2)
    square = center_square(source.frames(times, data.frame_size), data.frame_size)
    frames = center_crop(torch.from_numpy(square).permute(3, 0, 1, 2)[None], video.crop_size)
    if name == "mvit_v2_s":  # whose backbone is compared below; it takes 16 frames
        encoder = create_video_encoder(name)
        encoder.backbone = reference = nn.Flatten()
    else:
        encoder = create_video_encoder(name, num_frames=number, frame_size=video.crop_size).eval()
        reference = encoder.backbone
        if name == "s3d":  # it takes 14 frames and more
            frames, whole = frames.repeat(1, 1, 8, 1, 1), whole.repeat(8, 1, 1, 1)
    with torch.inference_mode():
        expected = reference(WEIGHTS[name].KINETICS400_V1.transforms()(whole)[None])
        assert (encoder(frames) - expected).norm() <= tolerance * expected.norm()
        encoder.mean += 0.3  # other statistics are seen
        assert (encoder(frames) - expected).norm() > tolerance * expected.norm()


def test_weights_of_before_keep_the_statistics_that_all_encoders_had() -> None:
    encoder = create_video_encoder("swin3d_t", num_frames=2, frame_size=32)
    kept = copy.deepcopy(encoder.state_dict())
    old = {name: value for name, value in kept.items() if name not in ("mean", "std")}
    encoder.load_state_dict(old, strict=True)
    assert encoder.mean.flatten().tolist() == pytest.approx(list(KINETICS_MEAN))
    assert encoder.std.flatten().tolist() == pytest.approx(list(KINETICS_STD))
    within = nn.ModuleDict({"video": create_video_encoder("swin3d_t", num_frames=2, frame_size=32)})
    within.load_state_dict({f"video.{name}": value for name, value in old.items()}, strict=True)
    assert torch.equal(within["video"].mean, encoder.mean)
    encoder.load_state_dict(kept, strict=True)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_a_classifier_with_random_weights_sees_frames_as_it_does() -> None:
    classifier = build_visual_classifier(labels={"kind": ["a", "b"]}, video="tiny", num_frames=2, crop_size=16)
    classifier.video.mean.fill_(0.25)
    assert torch.equal(with_random_weights(classifier).video.mean, classifier.video.mean)


def test_options_of_an_encoder_are_checked_and_kept() -> None:
    with pytest.raises(ValueError, match=r"^video\.options: tiny has no option 'scaled_positions'; it takes none$"):
        create_video_encoder("tiny", scaled_positions=True)
    with pytest.raises(ValueError, match=r"video\.options: scaled_positions of mvit_v2_s must be true or false, got 2"):
        complete_video(VideoConfig("mvit_v2_s", {"scaled_positions": 2}), DataConfig())
    with torch.device("meta"):
        encoder = create_video_encoder("mvit_v2_s", scaled_positions=True)
    assert encoder.options == {"scaled_positions": True}
    assert {block.attn.position_scale for block in encoder.backbone.blocks} == {96**-0.5}


def test_tiny_sees_time_and_place() -> None:
    torch.manual_seed(0)
    encoder = create_video_encoder("tiny", num_frames=8, frame_size=56).eval()
    frames = torch.rand(1, 3, 8, 56, 56)
    with torch.inference_mode():
        plain = encoder(frames)
        assert (encoder(frames.flip(2)) - plain).abs().max() > 1e-3
        assert (encoder(frames.flip(3)) - plain).abs().max() > 1e-3


def test_tiny_motion_sees_small_motion_better() -> None:
    """A change of 1 % of the light moves what its first convolution sees by more than it moves what tiny's sees."""
    still = torch.rand(1, 3, 1, 56, 56).expand(-1, -1, 8, -1, -1)
    moved = still.clone()
    moved[:, :, 3:5, 20:30, 20:30] += 0.01
    change = {}
    for name in ("tiny", "tiny_motion"):
        first = create_video_encoder(name, num_frames=8, frame_size=56).backbone[0]
        change[name] = float((first(moved) - first(still)).square().sum())
    assert change["tiny_motion"] > 4 * change["tiny"]


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="did you mean 'mvit_v2_s'"):
        create_video_encoder("mvit_v2")
    with pytest.raises(ValueError, match=r"data\.num_frames to 16"):
        create_video_encoder("mvit_v2_s", num_frames=8)
    with pytest.raises(ValueError, match="no Kinetics weights"):
        create_video_encoder("tiny", pretrained=True)


@pytest.mark.parametrize("name", sorted(set(SIZES) - {"tiny", "tiny_motion"}))
def test_the_map_is_what_the_features_are_pooled_from(name: str) -> None:
    torch.manual_seed(0)
    frames, size = SIZES[name]
    encoder = create_video_encoder(name, num_frames=frames, frame_size=size).eval()
    clip = torch.rand(1, 3, frames, size, size)
    with torch.inference_mode():
        features, grid = encoder.forward_map(clip)
        torch.testing.assert_close(features, encoder(clip))
    assert grid.ndim == 5 and grid.shape[-1] == encoder.feature_map.width
    if name == "mvit_v2_s":  # it has a class token instead
        assert grid.shape == (1, 8, 7, 7, 768)
    else:
        torch.testing.assert_close(grid.mean(dim=(1, 2, 3)), features)


@pytest.mark.parametrize("name", ["tiny", "tiny_motion"])
def test_the_map_of_the_tiny_ones_is_in_front_of_their_last_layer(name: str) -> None:
    encoder = create_video_encoder(name, num_frames=8, frame_size=56).eval()
    with torch.inference_mode():
        features, grid = encoder.forward_map(torch.rand(2, 3, 8, 56, 56))
        assert grid.shape == (2, 8, 2, 2, encoder.feature_map.width)
        torch.testing.assert_close(encoder.backbone[-1](grid.movedim(-1, 1).flatten(1)), features)
    assert not encoder.backbone[7]._forward_hooks


def test_an_encoder_without_a_map_says_so() -> None:
    with pytest.raises(ValueError, match="'linear' has no map"):
        VideoEncoder("linear", torch.nn.Flatten(), 12).forward_map(torch.rand(1, 3, 1, 2, 2))


def test_stochastic_depth_is_torchvisions_and_blocks_share_their_code() -> None:
    swin = create_video_encoder("swin3d_t", num_frames=2, frame_size=32)
    paths = [module for module in swin.modules() if isinstance(module, DropPath)]
    assert len(paths) == 12 and paths[-1].drop_path == pytest.approx(0.1)
    torch.manual_seed(0)
    out = paths[-1].train()(torch.ones(20000, 1, 1))
    assert abs(out.mean() - 1) < 0.02 and sorted(out.unique().tolist()) == pytest.approx([0.0, 1 / 0.9])
    assert torch.equal(paths[-1].eval()(out), out)
    torch._dynamo.reset()
    counter = CompileCounter()
    equal = [block for block in encoder_blocks(swin.train()) if isinstance(block, SwinTransformerBlock)][4:10]
    for block in equal:  # those of the third stage, every second one with shifted windows
        block.compile(backend=counter, dynamic=False)
        block(torch.randn(1, 1, 9, 9, 384))
    assert counter.frame_count == 2


def test_a_pair_takes_its_video_encoders_own_frames() -> None:
    for video, sizes in (("tiny", (8, 48)), ("tiny_motion", (8, 48))):
        settings = AudioVisualPair.build(audio="mast_nano", video=video).settings
        assert (settings["num_frames"], settings["crop_size"]) == sizes == own_size(video)
        assert "frames" not in settings and "side" not in settings
        assert AudioVisualPair.build(**settings).settings == settings


@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_draws_no_bar_into_a_log_file(terminal: bool, monkeypatch) -> None:
    asked: list[dict] = []

    def no_network(url: str, **options: object) -> dict:
        asked.append(options)
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal, write=len, flush=lambda: None))
    for name in ("s3d", "r2plus1d_18"):
        with pytest.raises(OSError, match="cannot be downloaded"):
            create_video_encoder(name, pretrained=True)
    assert [options["progress"] for options in asked] == [terminal, terminal]
    assert all(options["check_hash"] for options in asked)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_grid_has_the_width_of_the_features(name: str) -> None:
    frames, size = SIZES[name]
    encoder = create_video_encoder(name, num_frames=frames, frame_size=size).eval()
    clip = torch.rand(1, 3, frames, size, size)
    with torch.inference_mode():
        grid = encoder.forward_grid(clip)
        by_place, by_time = encoder.forward_grid(clip, time=False), encoder.forward_grid(clip, space=False)
    assert grid.ndim == 5 and grid.shape[-1] == encoder.num_features
    assert by_place.shape == (1, 1, *grid.shape[2:]) and by_time.shape == (*grid.shape[:2], 1, 1, grid.shape[-1])
    assert min(grid.shape[2:4]) > 1 and grid.flatten(1, 3).std(dim=1).max() > 0  # places differ


@pytest.mark.parametrize("name", sorted(set(SIZES) - {"tiny", "tiny_motion", "mvit_v2_s"}))
def test_the_features_are_the_mean_of_the_grid(name: str) -> None:
    frames, size = SIZES[name]
    encoder = create_video_encoder(name, num_frames=frames, frame_size=size).eval()
    clip = torch.rand(2, 3, frames, size, size)
    with torch.inference_mode():
        features = encoder(clip)
        for options in ({}, {"time": False}, {"space": False}, {"time": False, "space": False}):
            torch.testing.assert_close(encoder.forward_grid(clip, **options).mean(dim=(1, 2, 3)), features)


@pytest.mark.parametrize("name", ["tiny", "tiny_motion"])
def test_a_token_of_the_tiny_ones_is_the_feature_of_a_clip_that_shows_it_everywhere(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_video_encoder(name, num_frames=8, frame_size=56).eval()
    cells: list[torch.Tensor] = []
    encoder.backbone[6].register_forward_hook(lambda module, inputs, output: cells.append(output))
    clip = torch.rand(2, 3, 8, 56, 56)
    with torch.inference_mode():
        features = encoder(clip)
        map_ = cells[0]  # (2, C, 8, 4, 4)
        grid, by_place = encoder.forward_grid(clip), encoder.forward_grid(clip, time=False)
        assert grid.shape == (2, 8, 4, 4, 256)
        tail = encoder.backbone[7:]
        always = map_[:, :, 3:4, 1:2, 2:3].expand_as(map_)
        torch.testing.assert_close(grid[:, 3, 1, 2], tail(always))
        everywhere = map_[:, :, :, 1:2, 2:3].expand_as(map_)
        torch.testing.assert_close(by_place[:, 0, 1, 2], tail(everywhere))
        torch.testing.assert_close(encoder.forward_grid(clip, time=False, space=False)[:, 0, 0, 0], features)


def test_a_backbone_without_a_map_is_refused() -> None:
    encoder = VideoEncoder("linear", nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 5)
    with pytest.raises(ValueError, match="'linear' has no map of features"):
        encoder.forward_grid(torch.rand(1, 3, 1, 4, 4))


def test_gradients_of_convolutions_in_bfloat16_on_a_cpu_are_those_of_float32() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 64, 3, padding=1)
    encoder = VideoEncoder("own", nn.Sequential(convolution, nn.ReLU(), nn.Conv3d(64, 64, 3, padding=1)), 64)
    frames = torch.rand(2, 3, 2, 8, 8)
    gradients = []
    for half in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            features = encoder(frames)
        features.float().square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()]))
    exact, found = gradients
    assert (found - exact).norm() < 0.02 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(frames).dtype == torch.float32  # 2 frames under a kernel of 3
        assert encoder(torch.rand(2, 3, 4, 8, 8)).dtype == torch.bfloat16
