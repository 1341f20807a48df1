"""Tasks: what they minimize and report."""

from dataclasses import replace

import pytest
import torch

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.data.batch import Batch
from avssl.evaluation.diagnostics import diagnose
from avssl.models import AudioClassifier, AudioVisualPair
from avssl.objectives import Objective, Shapes, create_objective
from avssl.training.finetuning import FinetuneTask
from avssl.training.pretraining import PretrainTask

SHAPES = Shapes(joint=8, audio=128, video=256, clips=4, audio_stride=(32, 32))
SMALL = {"embed_dim": 16, "depths": [1, 1, 1, 1]}


def make_batch(size: int = 4, labels: dict[str, torch.Tensor] | None = None) -> Batch:
    torch.manual_seed(0)
    return Batch(
        audio=torch.randn(size, 8000),
        video=torch.randint(0, 256, (size, 3, 4, 40, 40), dtype=torch.uint8),
        labels=labels or {},
        index=torch.arange(size),
        clip_ids=[str(i) for i in range(size)],
        start=torch.zeros(size, dtype=torch.float64),
    )


def make_pair(**options) -> AudioVisualPair:
    torch.manual_seed(0)
    sizes = {"num_frames": 4, "crop_size": 32, "embedding_dim": 8, "projections": {"infonce": {}}}
    return AudioVisualPair.build(audio="mast_pico", audio_options=SMALL, video="tiny", **sizes | options)


def augmentation() -> dict[str, torch.nn.Module]:
    return {
        "wave": WaveAugment(),
        "spectrogram": SpectrogramAugment(time_mask=0.1, freq_mask=0.1),
        "video": VideoAugment(32),
    }


def pretrain_task(objectives) -> PretrainTask:
    return PretrainTask(make_pair(), objectives, **augmentation())


def test_pretraining_sums_weighted_objectives_and_reaches_every_parameter() -> None:
    objectives = [
        ("infonce", create_objective("infonce", SHAPES), 1.0),
        ("infonce", create_objective("infonce", SHAPES), 0.25),
    ]
    task = pretrain_task(objectives)
    losses, report = task(make_batch())
    assert losses.keys() == {"infonce_1", "infonce_2"}
    assert losses["infonce_2"].item() == pytest.approx(losses["infonce_1"].item() / 4)
    assert "infonce_1/temperature" in report
    sum(losses.values()).backward()
    missing = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_a_step_says_which_rows_are_segments_of_one_file() -> None:
    batch, found = replace(make_batch(), index=torch.tensor([0, 1, 4, 2])), []
    for files in (None, torch.tensor([7, 7, 3, 8, 7])):
        task = pretrain_task([("infonce", create_objective("infonce", SHAPES), 1.0)])
        task.register_buffer("files", files, persistent=False)
        task.objectives.forward = lambda step: (found.append(step.file.tolist()), {})
        task.diagnosing = False
        task(batch)
    assert found == [[0, 1, 4, 2], [7, 7, 7, 3]]


def test_report_diagnoses_what_the_objectives_compared() -> None:
    task = pretrain_task([("infonce", create_objective("infonce", SHAPES), 1.0)])
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output.detach(), f"{name}_features": inputs[0]})

    for name in ("audio", "video"):
        task.pair.head("infonce", name).register_forward_hook(keep(name))
    _, report = task(make_batch())
    # One time bin: the projection's input is the features.
    expected = diagnose(seen["audio"], seen["video"], seen["audio_features"], seen["video_features"])
    found = {key: value for key, value in report.items() if key.startswith("diagnostics/")}
    assert found.keys() == {f"diagnostics/{name}" for name in expected} and len(found) == 9
    for name, value in expected.items():
        torch.testing.assert_close(found[f"diagnostics/{name}"], value)
        assert not found[f"diagnostics/{name}"].requires_grad


def test_only_steps_that_are_logged_are_diagnosed() -> None:
    class Listening(Objective):
        """Asks for the audio alone."""

        def forward(self, step):
            return step.project(self, "audio").square().mean(), {}

    listening = Listening()
    listening.projected_by = "infonce"
    task = PretrainTask(make_pair(), [("listening", listening, 1.0)], **augmentation(), diagnose_every=3)
    names = {"diagnostics/audio_uniformity", "diagnostics/audio_rank", "diagnostics/audio_feature_rank"}
    names.add("diagnostics/audio_feature_cosine")
    diagnosed = []
    for step in range(1, 6):
        task.before_step(step - 1, 5)
        report = task(make_batch())[1]
        assert report.keys() in (names, set())
        diagnosed.append(bool(report))
    assert diagnosed == [False, False, True, False, True]
    with pytest.raises(ValueError, match=r"log\.every: must be at least 1, got 0"):
        PretrainTask(make_pair(), [], **augmentation(), diagnose_every=0)


def test_pair_learns_to_match_a_batch() -> None:
    task = pretrain_task([("infonce", create_objective("infonce", SHAPES), 1.0)])
    task.wave, task.spectrogram, task.video = (
        WaveAugment(gain_db=0.0),
        SpectrogramAugment(),
        VideoAugment(32, crop_scale=1, flip=0, color=0),
    )
    batch = make_batch()
    # Loudness in the sound, brightness in the picture: a correspondence to find.
    level = torch.tensor([0.01, 0.1, 0.4, 1.0])
    batch.audio.mul_(level[:, None])
    batch.video.copy_((batch.video * level.view(-1, 1, 1, 1, 1)).byte())
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-3)
    for _ in range(60):
        losses, _ = task(batch)
        optimizer.zero_grad()
        losses["infonce"].backward()
        optimizer.step()
    assert losses["infonce"].item() < 0.7  # chance is log 4 = 1.39


def test_time_bins_tell_when() -> None:
    pair = make_pair(time_bins=4).eval()
    sound = torch.zeros(1, 16000)
    sound[:, 2000:5000] = torch.randn(3000)
    later = sound.roll(8000, dims=1)
    with torch.inference_mode():
        spectrograms = pair.frontend(torch.cat([sound, later]))
        by_time = pair.encode_audio(spectrograms)
        features, joint = by_time.mean(dim=2), pair.project_audio(by_time, "infonce")
    joint_change = (joint[0] - joint[1]).norm() / joint[0].norm()
    feature_change = (features[0] - features[1]).norm() / features[0].norm()
    assert joint_change > 1.2 * feature_change


def test_features_are_the_encoders_own() -> None:
    pair = make_pair().eval()
    spectrogram = torch.randn(2, 1, 128, 60)
    with torch.inference_mode():
        torch.testing.assert_close(pair.encode_audio(spectrogram).mean(dim=2), pair.audio(spectrogram))


def classifier(labels) -> AudioClassifier:
    torch.manual_seed(0)
    return AudioClassifier(mast.create_model("mast_pico", **SMALL), mast.LogMel(), labels)


def finetune_task(labels, **options) -> FinetuneTask:
    return FinetuneTask(classifier(labels), WaveAugment(), SpectrogramAugment(time_mask=0.1, freq_mask=0.1), **options)


def test_several_heads_are_slices_of_one_layer() -> None:
    heads = {"verb": ["a", "b"], "noun": ["x", "y", "z"]}
    task = finetune_task(heads, label_smoothing=0.0).eval()
    labels = {"verb": torch.tensor([0, 1, 1, -1]), "noun": torch.tensor([2, -1, 0, 1])}
    batch = make_batch(labels=labels)
    losses, report = task(batch)
    with torch.inference_mode():
        outputs = task.classifier.encoder(task.classifier.frontend(batch.audio))
    assert outputs.shape == (4, 5)
    for head, part in (("verb", outputs[:, :2]), ("noun", outputs[:, 2:])):
        expected = torch.nn.functional.cross_entropy(part, labels[head], ignore_index=-1)
        torch.testing.assert_close(losses[head], expected)
    assert report.keys() == {"verb/train_top1", "noun/train_top1"}


def test_unlabelled_batch_has_zero_loss() -> None:
    task = finetune_task({"verb": ["a", "b"]})
    losses, _ = task(make_batch(labels={"verb": torch.full((4,), -1)}))
    assert losses["verb"].item() == 0.0


def test_mixup_loss_is_the_blend_of_both_labels(monkeypatch) -> None:
    task = finetune_task({"c": ["a", "b", "c"]}, mixup_alpha=0.5, label_smoothing=0.0)
    task.wave, task.spectrogram = WaveAugment(gain_db=0.0), SpectrogramAugment()
    task.classifier.eval()  # no stochastic depth
    partner, weight = torch.tensor([1, 0, 3, 2]), torch.tensor([0.5, 0.6, 0.7, 1.0])
    monkeypatch.setattr("avssl.training.finetuning.mixup", lambda x, *_: (x, partner, weight))
    target = torch.tensor([0, 1, 2, 0])
    batch = make_batch(labels={"c": target})
    loss = task(batch)[0]["c"]
    with torch.no_grad():
        logits = task.classifier(task.classifier.frontend(batch.audio))["c"]
    log = logits.log_softmax(1)
    expected = -(weight * log[range(4), target] + (1 - weight) * log[range(4), target[partner]]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_classifier_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one head"):
        classifier({})


def contrast_task(terms, **options) -> FinetuneTask:
    model = classifier({"event": ["a", "b", "c"]})
    shapes = Shapes(128, model.encoder.num_features, 0, 8, model.encoder.stride)
    objectives = [(name, create_objective(name, shapes, **arguments), weight) for name, arguments, weight in terms]
    return FinetuneTask(model, WaveAugment(gain_db=0.0), SpectrogramAugment(), objectives=objectives, **options)


def test_finetuning_adds_supervised_contrast_to_the_cross_entropy() -> None:
    labels = {"event": torch.tensor([0, 0, 1, 1])}
    batch = make_batch(labels=labels)
    plain, _ = contrast_task([])(batch)
    task = contrast_task([("imc", {"modality": "audio"}, 0.5), ("masked", {"modality": "audio"}, 1.0)])
    losses, report = task(batch)
    assert losses.keys() == {"event", "imc", "masked"}
    torch.testing.assert_close(losses["event"], plain["event"])
    assert losses["imc"].item() == pytest.approx(0.5 * report["imc/audio_loss"].item())
    losses["imc"].backward()
    reached = {name for name, parameter in task.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("projections.imc.audio.") for name in reached)
    assert any(name.startswith("classifier.encoder.stages.") for name in reached)


def test_finetuning_refuses_what_it_cannot_do() -> None:
    batch = make_batch(labels={"event": torch.tensor([0, 0, 1, 1])})
    with pytest.raises(ValueError, match="fine-tuning sees audio only"):
        contrast_task([("infonce", {}, 1.0)])(batch)
    with pytest.raises(ValueError, match="momentum teacher is for pretraining"):
        contrast_task([("distill", {"modality": "audio", "between": "within"}, 1.0)])(batch)
    with pytest.raises(ValueError, match="0 beside objectives"):
        contrast_task([("imc", {"modality": "audio"}, 1.0)], mixup_alpha=0.3)
    with pytest.raises(ValueError, match="at least 0"):
        contrast_task([], mixup_alpha=-0.1)


@pytest.mark.parametrize("pad", ["wave", "edge"])
def test_training_sees_short_clips_padded_by_the_rule(pad: str, monkeypatch) -> None:
    """Both tasks, one of them in chunks, hand the encoder what evaluation would."""
    batch = replace(make_batch(), samples=torch.tensor([8000, 5000, 900, 400]))
    for clip, size in zip(batch.audio, batch.samples.tolist(), strict=True):
        clip[size:] = 0
    frontend = mast.LogMel(pad=pad)
    wanted = frontend(batch.audio, batch.samples)
    assert torch.equal(wanted, mast.LogMel()(batch.audio)) == (pad == "wave")
    plain = {"wave": WaveAugment(gain_db=0.0), "spectrogram": SpectrogramAugment(masks=0)}
    torch.manual_seed(0)
    classifier = AudioClassifier(mast.create_model("mast_pico", num_classes=2, **SMALL), frontend, {"c": ["a", "b"]})
    pair = make_pair(frontend_options={"pad": pad})
    objectives = [("infonce", create_objective("infonce", SHAPES), 1.0)]
    for task, encoder in (
        (FinetuneTask(classifier, **plain), classifier.encoder),
        (PretrainTask(pair, objectives, **plain, video=VideoAugment(32), chunk=3), pair.audio),
    ):
        seen: list[torch.Tensor] = []
        forward = encoder.forward_grid
        monkeypatch.setattr(encoder, "forward_grid", lambda x, f=forward, s=seen: s.append(x) or f(x))
        task.train()(replace(batch, labels={"c": torch.tensor([0, 1, 0, 1])}))
        torch.testing.assert_close(torch.cat(seen)[:4], wanted)


def test_blends_of_the_loader_count_by_both_labels_and_are_not_blended_again() -> None:
    task = finetune_task({"c": ["a", "b", "c"]}, label_smoothing=0.1)
    task.wave, task.spectrogram = WaveAugment(gain_db=0.0), SpectrogramAugment()
    task.classifier.eval()  # no stochastic depth
    own, other, share = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2]), torch.tensor([0.5, 0.3, 0.6, 1.0])
    batch = replace(make_batch(labels={"c": own}), mixed_labels={"c": other}, mixed_share=share)
    loss = task(batch)[0]["c"]
    with torch.no_grad():
        log = task.classifier(task.classifier.frontend(batch.audio))["c"].log_softmax(1)
    # CAV-MAE's dataloader.py: smoothing / classes everywhere, and (1 - smoothing) shared out between the two labels.
    goal = torch.full((4, 3), 0.1 / 3)
    for row in range(4):
        goal[row, own[row]] += share[row] * 0.9
        goal[row, other[row]] += (1 - share[row]) * 0.9
    torch.testing.assert_close(loss, -(goal * log).sum(1).mean(), rtol=1e-4, atol=1e-5)
