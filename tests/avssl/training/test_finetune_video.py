"""Fine-tuning with video: what is classified, what objectives are shown, and mixup of both modalities alike."""

import pytest
import torch
import torch.nn.functional as F

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.augment.mixing import blend
from avssl.data.batch import Batch
from avssl.models.pair import center_crop
from avssl.models.visual_classifier import build_visual_classifier
from avssl.objectives import Objective, Shapes, create_objective
from avssl.training.finetuning import FinetuneTask

SIDE = 24
HEADS = {"c": ["x", "y", "z"]}
SOUND = {"audio": "mast_pico", "audio_options": {"embed_dim": 8, "depths": [1, 1, 1, 1], "drop_path": 0.0}}
BOTTLENECK = {"tokens": 2, "width": 8, "heads": 2, "depth": 2}


def task_of(kind: str, terms=(), still: bool = True, **options) -> FinetuneTask:
    """A task whose augmentation, if ``still``, changes nothing but the size of the frames."""
    torch.manual_seed(0)
    sound = {} if kind == "video" else SOUND | {"frontend": {"num_mels": 32}, "fusion": kind}
    more = {"bottleneck": BOTTLENECK} if kind == "bottleneck" else {}
    model = build_visual_classifier(labels=HEADS, video="tiny", num_frames=4, crop_size=SIDE, **sound, **more)
    augment = (
        (WaveAugment(gain_db=0.0), SpectrogramAugment())
        if still
        else (WaveAugment(), SpectrogramAugment(time_mask=0.1, freq_mask=0.1))
    )
    video = VideoAugment(SIDE, crop_scale=1, flip=0, color=0) if still else VideoAugment(SIDE)
    width = 0 if model.audio_encoder is None else model.audio_encoder.num_features
    shapes = Shapes(128, width, model.video.num_features, 8)
    objectives = [(name, create_objective(name, shapes, **arguments), weight) for name, arguments, weight in terms]
    return FinetuneTask(model, *augment, objectives=objectives, video=video, **options)


def make_batch() -> Batch:
    torch.manual_seed(1)
    return Batch(
        audio=torch.randn(4, 6400) / 10,
        video=torch.randint(256, (4, 3, 4, SIDE, SIDE), dtype=torch.uint8),
        labels={"c": torch.tensor([0, 0, 1, -1])},
        index=torch.arange(4),
        clip_ids=list("abcd"),
        start=torch.zeros(4, dtype=torch.float64),
    )


@pytest.mark.parametrize("kind", ["video", "late", "bottleneck"])
def test_the_loss_is_that_of_the_classifier(kind: str) -> None:
    task, batch = task_of(kind, label_smoothing=0.0).eval(), make_batch()
    losses, report = task(batch)
    with torch.inference_mode():
        logits = task.classifier(batch)["c"]
    assert losses.keys() == {"c"}
    torch.testing.assert_close(losses["c"], F.cross_entropy(logits, batch.labels["c"], ignore_index=-1))
    assert report["c/train_top1"].item() == pytest.approx((logits.argmax(1) == batch.labels["c"])[:3].float().mean())
    losses["c"].backward()
    parts = {name.split(".")[1] for name, parameter in task.named_parameters() if parameter.grad is not None}
    assert parts == {"video", "head"} | ({"audio"} if kind != "video" else set()) | (
        {"fusion"} if kind == "bottleneck" else set()
    )


@pytest.mark.parametrize("kind", ["late", "bottleneck"])
def test_contrast_of_audio_and_video_beside_the_cross_entropy(kind: str) -> None:
    batch = make_batch()
    plain, _ = task_of(kind)(batch)
    task = task_of(kind, [("avc", {"temperature": 0.3}, 0.5)])
    losses, report = task(batch)
    torch.testing.assert_close(losses["c"], plain["c"])
    assert report["avc/labelled"].item() == 0.75 and report["avc/positives"].item() == 1.5
    losses["avc"].backward()
    reached = {name for name, parameter in task.named_parameters() if parameter.grad is not None}
    heads = "projections.avc.audio.", "projections.avc.video."
    for part in (*heads, "classifier.audio.stages.", "classifier.video.backbone."):
        assert any(name.startswith(part) for name in reached), part
    assert not any(".fusion." in name or ".head." in name for name in reached)


class Looking(Objective):
    """Keeps what a step shows it."""

    def forward(self, step):
        self.video = [step.video(view) for view in (0, 1, 0)]
        self.frames = [step.map_video(lambda encoder, frames: frames, view) for view in (0, 1)]
        self.again = step.map_video(lambda encoder, frames: encoder(frames), 1)
        return step.audio().sum() * 0, {}


def test_objectives_see_the_view_that_is_classified_and_further_ones() -> None:
    task, batch = task_of("late", still=False).eval(), make_batch()
    looking = Looking()
    task = FinetuneTask(
        task.classifier, task.wave, task.spectrogram, objectives=[("l", looking, 1.0)], video=VideoAugment(SIDE)
    )
    task.classifier.eval()  # batch norm as it is: a second pass computes the same
    task(batch)
    assert looking.video[0] is looking.video[2]
    assert (looking.frames[0] - looking.frames[1]).abs().max() > 0.01
    torch.testing.assert_close(looking.video[1], looking.again)


def test_sound_and_picture_are_mixed_alike(monkeypatch) -> None:
    task, batch = task_of("late", mixup_alpha=0.5, label_smoothing=0.0), make_batch()
    batch.labels["c"][3] = 2
    task.classifier.eval()
    partner, weight = torch.tensor([1, 0, 3, 2]), torch.tensor([0.5, 0.6, 0.7, 1.0])
    monkeypatch.setattr("avssl.training.finetuning.mixup", lambda x, *_: (blend(x, partner, weight), partner, weight))
    losses, _ = task(batch)
    with torch.no_grad():
        frames = center_crop(batch.video, SIDE)
        spectrogram = task.classifier.frontend(batch.audio)
        mixed = [
            torch.stack([weight[i] * x[i] + (1 - weight[i]) * x[partner[i]] for i in range(4)])
            for x in (spectrogram, frames)
        ]
        log = task.classifier.outputs(task.classifier.encode(*mixed).features).log_softmax(1)
    target = batch.labels["c"]
    expected = -(weight * log[range(4), target] + (1 - weight) * log[range(4), target[partner]]).mean()
    torch.testing.assert_close(losses["c"], expected, rtol=1e-4, atol=1e-5)


def test_what_a_modality_lacks_is_named() -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match="fine-tuning sees video only; set modality to both"):
        task_of("video", [("avc", {}, 1.0)])(batch)
    with pytest.raises(ValueError, match="momentum teacher is for pretraining"):
        task_of("late", [("distill", {"modality": "video", "between": "within"}, 1.0)])(batch)
    losses, _ = task_of("video", [("imc", {"modality": "video"}, 1.0)])(batch)
    assert losses["imc"].isfinite()


def test_the_audio_classifier_needs_no_video() -> None:
    model = task_of("late").classifier
    assert isinstance(model.audio_encoder, mast.SpectrogramModel)
    with pytest.raises(AssertionError, match="needs video and its augmentation"):
        FinetuneTask(model, WaveAugment(), SpectrogramAugment(time_mask=0.1, freq_mask=0.1))(make_batch())
