"""Classifiers of video and of both: shapes, the whole and its parts, and what each fusion can tell apart."""

import pytest
import torch
from torch import Tensor, nn

import mast
from avssl.data.batch import Batch
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.pair import center_crop
from avssl.models.visual_classifier import AudioVisualClassifier, VideoClassifier, build_visual_classifier

HEADS = {"verb": ["cut", "wash"], "noun": ["knife", "cup", "pan"]}
SMALL = {"embed_dim": 8, "depths": [1, 1, 1, 1], "drop_path": 0.0}
BOTTLENECK = {"tokens": 4, "width": 32, "heads": 2, "depth": 3}
FRAMES = {"video": "tiny", "num_frames": 4, "crop_size": 32}


def make(kind: str, labels: dict[str, list[str]] = HEADS) -> Classifier:
    torch.manual_seed(0)
    if kind == "audio":
        return AudioClassifier(mast.create_model("mast_pico", **SMALL), mast.LogMel(num_mels=32), labels)
    if kind == "video":
        return build_visual_classifier(labels=labels, **FRAMES)
    sound = {"audio": "mast_pico", "audio_options": SMALL, "frontend": {"num_mels": 32}}
    bottleneck = BOTTLENECK if kind == "bottleneck" else None
    return build_visual_classifier(labels=labels, **FRAMES, **sound, fusion=kind, bottleneck=bottleneck)


def batch_of(audio: Tensor | None, video: Tensor | None, labels: dict[str, Tensor] | None = None) -> Batch:
    size = len(video if audio is None else audio)
    return Batch(
        audio=audio,
        video=video,
        labels=labels or {},
        index=torch.arange(size),
        clip_ids=[str(i) for i in range(size)],
        start=torch.zeros(size, dtype=torch.float64),
    )


def random_batch(size: int = 3) -> Batch:
    torch.manual_seed(1)
    return batch_of(torch.randn(size, 8000) / 10, torch.randint(256, (size, 3, 4, 40, 36), dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["video", "late", "bottleneck"])
def test_logits_by_head_of_a_batch(kind: str) -> None:
    model, batch = make(kind).eval(), random_batch()
    with torch.inference_mode():
        logits, features = model(batch), model.features(batch)
        outputs = model.head(features)
    assert features.shape == (3, model.num_features)
    assert {head: tuple(values.shape) for head, values in logits.items()} == {"verb": (3, 2), "noun": (3, 3)}
    torch.testing.assert_close(torch.cat(list(logits.values()), dim=1), outputs)


def test_late_features_are_those_of_both_encoders() -> None:
    model, batch = make("late").eval(), random_batch()
    with torch.inference_mode():
        features = model.features(batch)
        heard = model.audio(model.frontend(batch.audio))  # without a head, a mast model returns its features
        seen = model.video(center_crop(batch.video, 32))
    torch.testing.assert_close(features, torch.cat([heard, seen], dim=1))


@pytest.mark.parametrize("kind", ["late", "bottleneck"])
def test_parts_are_the_encoders_own_features(kind: str) -> None:
    model, batch = make(kind).eval(), random_batch()
    with torch.inference_mode():
        spectrogram, frames = model.frontend(batch.audio), center_crop(batch.video, 32)
        encoded = model.encode(spectrogram, frames)
        torch.testing.assert_close(encoded.features, model.features(batch))
        torch.testing.assert_close(encoded.audio, model.encode_audio(spectrogram))
        torch.testing.assert_close(encoded.audio, model.audio(spectrogram))
        torch.testing.assert_close(encoded.video, model.encode_video(frames))


def test_the_classifier_of_audio_keeps_its_ways() -> None:
    model, batch = make("audio").eval(), random_batch()
    with torch.inference_mode():
        features = model.features(batch)
        torch.testing.assert_close(features, model.embed_audio(batch.audio))
        torch.testing.assert_close(model.split(model.outputs(features)), model.classify(batch.audio))
        torch.testing.assert_close(model.outputs(features), model.encoder(model.frontend(batch.audio)))
    assert (model.modalities, model.video_encoder, model.audio_encoder) == (("audio",), None, model.encoder)
    with pytest.raises(ValueError, match="AudioClassifier has no video encoder"):
        model.encode_video(torch.rand(1, 3, 4, 32, 32))


@pytest.mark.parametrize("kind", ["video", "late", "bottleneck"])
def test_settings_and_state_rebuild_it(kind: str) -> None:
    model, batch = make(kind).eval(), random_batch()
    nn.init.normal_(model.head.bias)
    twin = build_visual_classifier(**model.settings)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert twin.settings == model.settings and type(twin) is type(model)
    with torch.inference_mode():
        torch.testing.assert_close(twin.eval()(batch), model(batch), rtol=0, atol=0)


def test_encoders_are_taken_as_they_are_but_for_an_audio_head() -> None:
    model = make("late")
    audio = mast.create_model("mast_pico", num_classes=7, **SMALL)
    fused = AudioVisualClassifier(audio, model.frontend, model.video, HEADS, num_frames=4, crop_size=32)
    assert fused.audio is audio and isinstance(audio.head, nn.Identity) and fused.video is model.video
    assert fused.modalities == ("audio", "video") and VideoClassifier.modalities == ("video",)


def test_what_is_missing_is_named() -> None:
    batch = random_batch()
    with pytest.raises(ValueError, match="needs audio"):
        make("late").features(batch_of(None, batch.video))
    with pytest.raises(ValueError, match="needs video"):
        make("video").features(batch_of(batch.audio, None))
    with pytest.raises(ValueError, match=r"video\.crop_size 32: raise data\.frame_size"):
        make("video").features(batch_of(None, batch.video[..., :20, :20]))
    with pytest.raises(ValueError, match=r"data\.num_frames: this classifier was made for 4 frames a clip, not 3"):
        make("video").features(batch_of(None, batch.video[:, :, :3]))
    with pytest.raises(ValueError, match="at least one head"):
        make("video", {})
    with pytest.raises(ValueError, match="VideoClassifier has no audio encoder"):
        make("video").encode_audio(torch.zeros(1))
    encoder = make("video").video
    encoder.feature_map = None
    with pytest.raises(ValueError, match="video encoder tiny lacks"):
        AudioVisualClassifier(
            make("audio").encoder, mast.LogMel(), encoder, HEADS, num_frames=4, crop_size=32, fusion="bottleneck"
        )


def four_clips(labels: list[int]) -> Batch:
    """A low and a high tone, each with a dark and a bright picture."""
    time = torch.arange(8000) / 16000
    tones = [torch.sin(2 * torch.pi * hertz * time) / 10 for hertz in (300, 3000)]
    audio = torch.stack([tones[i // 2] for i in range(4)])
    video = torch.stack([torch.full((3, 4, 32, 32), 40 + 160 * (i % 2), dtype=torch.uint8) for i in range(4)])
    return batch_of(audio, video, {"c": torch.tensor(labels)})


def accuracy_after_training(kind: str, labels: list[int], steps: int = 120) -> float:
    """Training accuracy on the four clips, after at most so many steps."""
    model = make(kind, {"c": [str(i) for i in range(max(labels) + 1)]})
    batch = four_clips(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model.outputs(model.features(batch)), batch.labels["c"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    with torch.inference_mode():
        found = model.outputs(model.features(batch)).argmax(1)
    return (found == batch.labels["c"]).float().mean().item()


# Which of the four it is: both modalities are needed, and each adds to it by itself.
WHICH = [0, 1, 2, 3]
# Whether sound and picture go together: neither tells anything by itself.
XOR = [0, 1, 1, 0]


@pytest.mark.parametrize("kind", ["late", "bottleneck"])
def test_both_modalities_together_tell_four_kinds_apart(kind: str) -> None:
    assert accuracy_after_training(kind, WHICH) == 1.0


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_one_modality_cannot(kind: str) -> None:
    assert accuracy_after_training(kind, WHICH, steps=15) <= 0.5
    assert accuracy_after_training(kind, XOR, steps=15) == 0.5


def test_only_the_bottleneck_sees_whether_they_go_together() -> None:
    """A sum of what is heard and what is seen is right for three of the four at best."""
    assert accuracy_after_training("bottleneck", XOR) == 1.0
    assert accuracy_after_training("late", XOR, steps=30) <= 0.75
