"""Fine-tuning on video and on both modalities, from the config to the evaluated checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from avssl.cli import parse
from avssl.commands.evaluate import evaluate
from avssl.commands.finetune import finetune
from avssl.commands.pretrain import pretrain
from avssl.config import (
    AudioConfig,
    BottleneckConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    LogConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    VideoConfig,
    WandbConfig,
)
from avssl.data.loaders import Loaders
from avssl.data.splits import open_splits
from avssl.evaluation.embeddings import Embeddings, classify_split, embed_features
from avssl.evaluation.probe import linear_probe
from avssl.loading import load
from avssl.models.visual_classifier import AudioVisualClassifier, VideoClassifier

DATA = DataConfig(
    options={"pretrain": 8, "train_per_class": 2, "test_per_class": 1},
    clip_seconds=0.5,
    eval_clips=1,
    num_frames=4,
    num_workers=0,
)
AUDIO = AudioConfig(options={"embed_dim": 8, "depths": [1, 1, 1, 1]}, num_mels=32)
SHARED = {
    "runtime": RuntimeConfig(accelerator="cpu"),
    "wandb": WandbConfig(mode="disabled"),
    "optim": OptimConfig(batch_size=8, max_steps=2),
    "log": LogConfig(every=1),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own, in which the small demo set is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(PretrainConfig(data=DATA, audio=AUDIO, output=folder, **SHARED))
    return folder


def config(output: Path, checkpoint: Path | str, **options) -> FinetuneConfig:
    return FinetuneConfig(data=DATA, checkpoint=str(checkpoint), output=output, **SHARED | options)


def loaders_of(modalities) -> tuple[Loaders, object]:
    splits = open_splits(DATA, modalities=modalities, labelled=True)
    return Loaders(replace(DATA, frame_size=56), splits.protocol, modalities, 16000, 8, 0), splits


def test_bottleneck_from_a_pretrained_pair_beside_contrast(pretrained: Path, tmp_path: Path) -> None:
    """Both encoders are the pair's; what was trained is saved, evaluated and loaded as one and the same."""
    small = BottleneckConfig(width=16, heads=2, depth=2)
    options = {"modality": "both", "fusion": "bottleneck", "bottleneck": small, "head": "full"}
    run = tmp_path / "run"
    result = finetune(config(run, pretrained, objectives=[{"name": "avc", "weight": 0.5}], **options))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss/event", "train/loss/avc", "train/avc/positives"} <= rows[0].keys()
    assert load(run).kind == "classifier" and not (run / "audio_encoder").exists()
    model = load(run).classifier
    assert isinstance(model, AudioVisualClassifier) and model.settings["bottleneck"]["width"] == 16
    assert model.settings["audio_options"]["embed_dim"] == 8
    trained = load(run / "checkpoints" / "last.ckpt").model.state_dict()
    assert trained.keys() == model.state_dict().keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    # Two steps of a small learning rate leave the encoders near the pair's, and far from any other's.
    before = load(pretrained).pair.audio.state_dict()
    for name, value in model.audio.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0.01)
    loaders, splits = loaders_of(("audio", "video"))
    features, scores = classify_split(model, loaders, splits.test, CPU)
    top1 = float(np.mean(scores["event"].argmax(1) == features.labels["event"]))
    assert top1 == pytest.approx(result["metrics"]["event/top1"])
    output = tmp_path / "evaluated"
    again = evaluate(
        EvaluateConfig(str(run), data=DATA, runtime=SHARED["runtime"], output=output, evaluations=["accuracy"])
    )
    assert again["metrics"]["event/top1"] == pytest.approx(top1)


@pytest.mark.parametrize("modality", ["video", "both"])
def test_a_linear_head_is_a_regression_on_the_features_side_by_side(modality: str, pretrained, tmp_path) -> None:
    finetune(config(tmp_path / "run", pretrained, modality=modality))
    model, pair = load(tmp_path / "run").classifier, load(pretrained).pair
    assert isinstance(model, AudioVisualClassifier if modality == "both" else VideoClassifier)
    loaders, splits = loaders_of(("audio", "video"))

    def features_of(manifest) -> Embeddings:
        """Features of the frozen pair, put side by side here."""
        both = []
        for batch in loaders.evaluate(manifest):
            with torch.inference_mode():
                heard = pair.audio(pair.frontend(batch.audio))
                seen = pair.video(batch.video[..., 4:52, 4:52].float() / 255)
            both.append(torch.cat([heard, seen], dim=1) if modality == "both" else seen)
        found = embed_features(model, loaders, manifest, CPU)
        np.testing.assert_allclose(found.features, torch.cat(both).numpy(), rtol=1e-4, atol=1e-5)
        return found

    train, test = features_of(splits.train), features_of(splits.test)
    expected = linear_probe(train, test, "event", len(splits.labels["event"])).scores
    _, scores = classify_split(model, loaders, splits.test, CPU)
    np.testing.assert_allclose(scores["event"], expected, rtol=1e-3, atol=1e-3)


def test_a_full_head_starts_on_standardized_features_unless_told_otherwise(pretrained, tmp_path, caplog) -> None:
    told = "standardize: features of the audio encoder"
    for run, standardize, times in (("kept", False, 0), ("run", True, 1), ("run", True, 1)):  # the last one resumes
        with caplog.at_level("INFO"):
            finetune(config(tmp_path / run, pretrained, head="full", standardize=standardize))
        assert caplog.text.count(told) == times
    before = load(pretrained).pair.audio.state_dict()["norm.weight"]
    gains = {run: load(tmp_path / run).classifier.audio_encoder.state_dict()["norm.weight"] for run in ("kept", "run")}
    torch.testing.assert_close(gains["kept"], before, rtol=0, atol=0.01)
    assert (gains["run"] - before).abs().max() > 0.1
    finetune(config(tmp_path / "again", tmp_path / "run", head="full"))
    assert caplog.text.count(told) == 1, "its head goes on, and knows the features as they are"


def test_late_fusion_from_random_weights_resumes(tmp_path: Path) -> None:
    options = {"modality": "both", "head": "full", "audio": AUDIO}
    finetune(config(tmp_path / "run", "none", **options))
    (tmp_path / "run" / "result.json").unlink()
    result = finetune(config(tmp_path / "run", "none", **options))  # at its last step: evaluated only
    assert result["finished"] and (tmp_path / "run" / "result.json").is_file()
    assert result["kind"] == "finetune-full" and result["start"] == "random"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fusion": "bottleneck"}, "fusion: bottleneck needs modality both, not audio"),
        ({"modality": "both", "fusion": "bottleneck"}, "bottleneck has layers to train; use head full"),
        (
            {"modality": "video", "video": VideoConfig(model="tiny_motion")},
            r"video\.model: .* 'tiny', not",
        ),
        ({"modality": "both", "video": VideoConfig(pretrained=True)}, r"video\.pretrained: the weights are the"),
        ({"modality": "both", "audio": AudioConfig(num_mels=96)}, r"audio\.num_mels: the checkpoint's encoder has"),
        ({"modality": "video", "audio": AUDIO}, "audio: modality video has no audio encoder"),
        (
            {"modality": "video", "data": DataConfig(num_frames=8, options=DATA.options)},
            "num_frames: .* has 4, not 8",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, told, pretrained, tmp_path) -> None:
    with pytest.raises(ValueError, match=told):
        finetune(
            FinetuneConfig(**{"data": DATA, "checkpoint": str(pretrained), "output": tmp_path, **SHARED, **options})
        )


def test_a_recipe_beside_a_checkpoint_trains_the_checkpoints_encoder(pretrained: Path, tmp_path: Path) -> None:
    """The demo's recipe names another audio encoder with other mel bins; the run's config says what was trained."""
    argv = ["--data.options", json.dumps(DATA.options), "--data.clip_seconds", "0.5", "--data.num_workers", "0"]
    argv += ["--checkpoint", str(pretrained), "--audio.options.drop_path", "0.2", "--output", str(tmp_path)]
    finetune(parse(FinetuneConfig, [*argv, "--runtime.accelerator", "cpu", "--wandb.mode", "disabled"]))
    audio = yaml.safe_load((tmp_path / "config.yaml").read_text())["audio"]
    assert (audio["model"], audio["num_mels"]) == ("mast_pico", 32)
    assert audio["options"] == AUDIO.options | {"drop_path": 0.2}
    assert load(tmp_path).audio_encoder.config["embed_dim"] == 8


def test_checkpoints_without_video_are_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"audio_encoder has no video encoder, which modality both needs"):
        finetune(config(tmp_path, pretrained / "audio_encoder", modality="both"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        finetune(config(tmp_path / "run", tmp_path / "nowhere", modality="video"))
    with pytest.raises(ValueError, match="holds a pair, not a classifier"):
        load(pretrained / "checkpoints" / "last.ckpt", kind="classifier")
    with pytest.raises(FileNotFoundError, match="is the run finished"):
        load(tmp_path, kind="classifier")


def test_the_training_split_of_a_pair_is_not_what_it_was_pretrained_on(pretrained: Path, tmp_path: Path) -> None:
    """The demo has both splits, of 24 and of 8 clips; of a training split nothing is left to fit probes on."""
    base = EvaluateConfig(str(pretrained), data=DATA, runtime=SHARED["runtime"], output=tmp_path)
    for split, clips in (("train", 24), ("pretrain", 8)):
        result = evaluate(replace(base, split=split, evaluations=["retrieval"]))
        assert result["coverage"]["evaluated"]["evaluated"] == clips
    with pytest.raises(ValueError, match="judged by itself"):
        evaluate(replace(base, split="train", evaluations=["knn"]))


def test_frames_are_those_of_the_checkpoint_where_none_are_given(pretrained: Path, tmp_path: Path) -> None:
    data = replace(DATA, num_frames=DataConfig().num_frames)
    config = EvaluateConfig(str(pretrained), data, runtime=SHARED["runtime"], evaluations=["retrieval"])
    results = [
        evaluate(replace(config, data=data, output=tmp_path / name)) for name, data in (("usual", data), ("own", DATA))
    ]
    assert results[0]["config"]["data"]["num_frames"] == 4
    assert results[0]["metrics"] == results[1]["metrics"]
