"""docs/extending.md: each of its examples is registered, trains, is saved and loaded, and is evaluated."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import avssl
import mast
from avssl.data import datasets
from avssl.evaluation import base as evaluations
from avssl.models import video
from avssl.objectives import base as objectives
from avssl.tracking import loggers, read_rows
from mast import registry

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
DATA = {
    "name": "demo",
    "options": {"pretrain": 8, "train_per_class": 1, "test_per_class": 1},
    "num_workers": 0,
    "clip_seconds": 1.0,
}
QUICK: dict[str, Any] = {"runtime": {"accelerator": "cpu"}, "wandb": {"mode": "disabled"}}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the page's blocks define; the names that they register are forgotten afterwards."""
    for parts in (datasets.DATASETS, evaluations.EVALUATIONS, video.VIDEO_ENCODERS):
        parts.names()  # the package's own are imported once, and stay
    kept = (
        (datasets.DATASETS, "parts"),
        (objectives.OBJECTIVES, "parts"),
        (evaluations.EVALUATIONS, "parts"),
        (video.VIDEO_ENCODERS, "parts"),
        (loggers.LOGGERS, "parts"),
        (registry, "BUILDERS"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        for module, name in kept:
            patch.setattr(module, name, dict(getattr(module, name)))
        scope: dict[str, Any] = {"__name__": "extension"}
        for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
            exec(compile(code, "docs/extending.md", "exec"), scope)
        yield scope


@pytest.fixture(scope="module")
def run(examples: Any, tmp_path_factory: pytest.TempPathFactory) -> avssl.Result:
    """A pretraining with the objective and both encoders."""
    return avssl.pretrain(
        data=DATA,
        audio={"model": "convnet", "options": {"width": 16}},
        video={"model": "patches3d", "options": {"width": 48}},
        objectives=[{"name": "cosine", "power": 2.0}, {"name": "vicreg"}],
        loggers=[{"name": "best", "prefix": "train/"}],
        optim={"max_steps": 2, "batch_size": 4},
        output=tmp_path_factory.mktemp("runs") / "pretrain",
        **QUICK,
    )


def test_one_example_of_each_kind() -> None:
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
    kinds = ["objective", "data set", "audio encoder", "video encoder", "evaluation", "logger"]
    assert [name.split(" ", 1)[1] for name in sections] == kinds
    assert all(text.count("```python") == 1 for text in sections.values())


def test_the_encoders_and_the_objective_train(run: avssl.Result) -> None:
    assert run.details["config"]["audio"]["model"] == "convnet" and 0 <= run.metrics["audio_to_video/R@1"] <= 1
    loaded = mast.from_pretrained(run.folder / "audio_encoder").model
    assert type(loaded).__name__ == "ConvNet" and loaded.config["width"] == 16
    layers = [loaded.layer_of(name) for name, _ in loaded.named_parameters()]
    assert set(layers) == {0, 1, 2, 3} and loaded.num_layers == 3
    tokens, grid = loaded.forward_features(torch.zeros(1, 1, 128, 64)), loaded.forward_grid(torch.zeros(1, 1, 128, 64))
    assert tokens.shape == (1, 16 * 8, 16) and grid.shape == (1, 16, 8, 16) and loaded.stride == (8, 8)


def test_the_grid_and_the_normalization_of_the_video_encoder_are_its_own(examples: Any) -> None:
    encoder = video.create_video_encoder("patches3d")
    gray = torch.full((1, 3, 4, 32, 32), 0.5)
    torch.testing.assert_close(encoder(gray), encoder.backbone(torch.zeros(1, 3, 4, 32, 32)))
    features, grid = encoder.forward_map(torch.rand(2, 3, 4, 32, 32))
    assert grid.shape == (2, 2, 4, 4, 64)
    torch.testing.assert_close(grid.mean(dim=(1, 2, 3)), features)


def test_the_data_set_is_trained_on_by_its_protocol(examples: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    for name in ("robin/ann_1", "wren/ann_2", "robin/bob_1", "robin/bob_2", "wren/bob_3", "wren/eve_1"):
        (tmp_path / "calls" / name).parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(tmp_path / "calls" / f"{name}.wav", 16000, noise)
    data = {"name": "bird-calls", "root": tmp_path / "calls", "num_workers": 0}
    optim = {"max_steps": 1, "batch_size": 2}
    audio = {"model": "convnet", "options": {"width": 8}}
    tuned = avssl.finetune(
        data=data, checkpoint="none", head="full", audio=audio, optim=optim, output=tmp_path / "run", **QUICK
    )
    assert "3 s" in tuned.details["clip_protocol"] and tuned.details["coverage"]["evaluated"]["evaluated"] == 2
    assert 0 <= tuned.metrics["species/top1"] <= 1


def test_the_evaluation_is_reported(run: avssl.Result) -> None:
    result = avssl.evaluate(data=DATA, checkpoint=run.checkpoint, evaluations=["class_mean"], cache=False)
    low, value, high = (result.metrics[f"class_mean/event/top1{end}"] for end in ("_low", "", "_high"))
    assert low <= value <= high and result.metrics["class_mean/event/count"] == 12
    assert result.report is not None and "Class means" in result.report.read_text(encoding="utf-8")


def test_the_logger_sees_every_row(run: avssl.Result) -> None:
    rows = read_rows(run.folder / "metrics.jsonl")
    assert {row["step"] for row in rows} == {2}
    best = json.loads((run.folder / "best.json").read_text())
    assert best == {name: value for row in rows for name, value in row.items() if name.startswith("train/")}
    assert best["train/loss"] > 0


def test_names_that_are_taken_are_refused(examples: Any) -> None:
    with pytest.raises(ValueError, match="'patches3d' is registered already"):
        video.register_video_encoder("patches3d", num_frames=4, frame_size=32)(examples["patches3d"])
    with pytest.raises(ValueError, match="give frame_size"):
        video.register_video_encoder("patches", num_frames=4)
