"""Features of a pretrained encoder before fine-tuning: mean 0 and deviation 1, by the final norm alone."""

import pytest
import torch
from torch import nn

import mast
from avssl.data.batch import Batch
from avssl.models.classifier import AudioClassifier
from avssl.models.video import create_video_encoder
from avssl.models.visual_classifier import AudioVisualClassifier
from avssl.training.standardize import final_norm, standardize_features

LABELS = {"sound": ["a", "b"]}
CPU = torch.device("cpu")


def batch(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pitch = torch.rand(size, 1, generator=generator) * 3000 + 200
    audio = torch.sin(torch.arange(8000) / 8000 * pitch * 6.28) + 0.1 * torch.randn(size, 8000, generator=generator)
    video = torch.randint(0, 255, (size, 3, 4, 32, 32), generator=generator, dtype=torch.uint8)
    names, start = [f"{seed}-{row}" for row in range(size)], torch.zeros(size, dtype=torch.float64)
    return Batch(0.1 * audio, video, {"sound": torch.zeros(size, dtype=torch.int64)}, torch.arange(size), names, start)


def classifier(name: str = "mast_nano", **options) -> AudioClassifier:
    torch.manual_seed(0)
    encoder = mast.create_model(name, num_classes=0, **options)
    with torch.no_grad():  # as after contrast: what clips have in common is far larger than what tells them apart
        encoder.norm.weight.mul_(0.1)
        encoder.norm.bias.copy_(torch.randn(encoder.num_features))
    return AudioClassifier(encoder, mast.LogMel(num_mels=64), LABELS)


def features(model, batches) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return torch.cat([model.encode_batch(each).audio for each in batches])


def batches() -> list[Batch]:
    return [batch(8, 1), batch(6, 2)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("mast_nano", {}), ("mast_nano", {"mask_padding": True}), ("ast_base", {"depth": 1, "embed_dim": 48, "heads": 2})],
)
def test_channels_get_mean_0_and_deviation_1_and_clips_stay_as_far_apart(name, options) -> None:
    model = classifier(name, **options).train()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = features(model.train(), batches())
    model.train()
    changed = standardize_features(model, batches, CPU)
    assert model.training and changed["audio"] > 0.9
    after = features(model, batches())
    torch.testing.assert_close(after.mean(0), torch.zeros(after.shape[1]), atol=1e-3, rtol=0)
    deviation = before.std(0)
    moved = deviation > 0.02 * deviation.square().mean().sqrt()
    torch.testing.assert_close(after.std(0)[moved], torch.ones(int(moved.sum())), atol=1e-2, rtol=0)
    torch.testing.assert_close(after[:, moved], ((before - before.mean(0)) / deviation)[:, moved], atol=2e-2, rtol=0)
    other = {key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}
    assert {key.split(".", 1)[1] for key in other} == {"norm.weight", "norm.bias"}


def test_a_still_channel_is_not_blown_up() -> None:
    model = classifier()
    with torch.no_grad():
        model.audio_encoder.norm.weight[3] = 0
    standardize_features(model, batches, CPU)
    assert features(model, batches())[:, 3].abs().max() < 1e-2
    assert model.audio_encoder.norm.weight.isfinite().all()


class Squashed(mast.MAST):
    """Features that do not follow its norm."""

    def features(self, x: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        return super().features(x, frames).tanh()


def test_features_that_do_not_follow_the_norm_stay_as_they_are(caplog) -> None:
    torch.manual_seed(0)
    model = AudioClassifier(Squashed(num_classes=0, embed_dim=32, depths=(1, 1, 2, 1)), mast.LogMel(), LABELS)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level("INFO"):
        assert standardize_features(model, batches, CPU) == {}
    assert "do not follow its norm" in caplog.text
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_too_few_clips_change_nothing(caplog) -> None:
    model = classifier()
    with caplog.at_level("INFO"):
        assert standardize_features(model, lambda: [batch(4, 1)], CPU) == {}
    assert "too few" in caplog.text


def test_beside_a_video_encoder_without_a_norm(caplog) -> None:
    audio, video = classifier().audio_encoder, create_video_encoder("tiny", num_frames=4, frame_size=32)
    assert final_norm(video) is None and isinstance(final_norm(audio), nn.LayerNorm)
    model = AudioVisualClassifier(audio, mast.LogMel(num_mels=64), video, LABELS, num_frames=4, crop_size=32)
    with caplog.at_level("INFO"):
        assert standardize_features(model, batches, CPU).keys() == {"audio"}
    assert "the video encoder does not end in a norm" in caplog.text
