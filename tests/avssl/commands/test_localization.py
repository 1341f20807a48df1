"""evaluate --evaluations localization: any pair on data that say where what sounds is."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from avssl.commands.evaluate import evaluate
from avssl.config import DataConfig, EvaluateConfig, RuntimeConfig
from avssl.data.boxes import Box, read_boxes
from avssl.data.catalog import open_data
from avssl.evaluation.localization import similarity_map
from avssl.models.pair import AudioVisualPair
from avssl.objectives.functional import unit

OPTIONS = {"pretrain": 1, "train_per_class": 1, "test_per_class": 1}
AUDIO = {"embed_dim": 16, "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "set"


@pytest.fixture
def config(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateConfig:
    """Of a pair with random weights."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    pair = AudioVisualPair.build(
        audio="mast_pico", audio_options=AUDIO, frontend_options={"num_mels": 64}, video="tiny", num_frames=4,
        crop_size=48, embedding_dim=8,
    )  # fmt: skip
    weights = {f"pair.{name}": value for name, value in pair.state_dict().items()}
    state = {"settings": {"kind": "pair", "pair": pair.settings}, "average": None, "task": weights}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "run" / "checkpoints" / "last.ckpt")
    data = DataConfig(name="demo", root=root, options=OPTIONS, frame_size=56, num_workers=0)
    told = {"data": {"name": "demo", "clip_seconds": 1.2, "frame_size": 56, "num_frames": 4}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(told))
    return EvaluateConfig(
        str(tmp_path / "run"), data, evaluations=["localization"], batch_size=4,
        runtime=RuntimeConfig(accelerator="cpu"), output=tmp_path / "out",
    )  # fmt: skip


def test_it_stands_beside_the_centre_and_random_weights(config: EvaluateConfig) -> None:
    metrics = evaluate(config)["metrics"]
    for rival in ("", "random/", "other_sound/", "centre/"):
        for name in ("cIoU@0.5", "AUC", "cIoU", "pointing"):
            assert 0 <= metrics[f"localization/{rival}{name}"] <= 1
            assert metrics[f"localization/{rival}{name}"] <= metrics.get(f"localization/best/{name}", 1.0) + 1e-9
    assert metrics["localization/count"] == 12
    assert metrics["localization/centre/cIoU@0.5"] > 0.3  # bodies stand near the middle, as they are large
    assert "mean maps of 2 clips of 1.2 s" in (page := (config.output / "report.html").read_text())
    assert "Heat maps of clips" in page and "the centre" in page
    assert (config.output / "pictures" / "localization.png").stat().st_size > 10_000


def test_a_pair_that_sees_the_body_is_right(config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are embedded at an angle that grows with the distance from the middle of the box."""
    manifest = open_data("demo", root=config.data.root, options=OPTIONS).select(split="test")
    middles = [np.argwhere(box.mask(80, 80, 48 / 56, 12)).mean(axis=0) for box in read_boxes(manifest)]
    seen = cycle(np.repeat(np.arange(len(middles)), 2))  # two clips of a row, one after the other, in every pass
    cells = np.stack(np.meshgrid(np.arange(12), np.arange(12), indexing="ij"), axis=-1)

    def embed_locations(self: AudioVisualPair, frames: torch.Tensor) -> torch.Tensor:
        far = np.stack([np.linalg.norm(cells - middles[next(seen)], axis=-1) for _ in frames])
        angle = torch.from_numpy(far / 20).float()
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    monkeypatch.setattr(AudioVisualPair, "embed_locations", embed_locations)
    monkeypatch.setattr(
        AudioVisualPair, "embed_audio", lambda self, sound, _: torch.tensor([[1.0, 0]]).repeat(len(sound), 1)
    )
    metrics = evaluate(config)["metrics"]
    assert metrics["localization/pointing"] == 1
    assert metrics["localization/cIoU"] > 0.8 * metrics["localization/best/cIoU"]
    assert metrics["localization/cIoU"] > metrics["localization/centre/cIoU"]


def test_data_without_the_truth_are_refused(config: EvaluateConfig, root: Path, tmp_path: Path) -> None:
    manifest = open_data("demo", root=root, options=OPTIONS)
    lines = ["path,split"] + [f"{path},test" for path in manifest.select(split="test").column("path")]
    (tmp_path / "plain.csv").write_text("\n".join(lines) + "\n")
    plain = replace(config.data, name=str(tmp_path / "plain.csv"), root=root, options={}, clip_seconds=1.2)
    with pytest.raises(
        ValueError, match=r"localization is not possible here: .*plain.csv does not say where what sounds"
    ):
        evaluate(replace(config, data=plain))


def test_a_table_of_ones_own_may_state_boxes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    test = open_data("demo", root=root, options=OPTIONS).select(split="test")
    lines = ["path,split,box"] + [f"{path},test,0.1 0.2 0.5 0.6" for path in test.column("path")[:2]]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    manifest = open_data(str(tmp_path / "boxes.csv"), root=root)
    assert read_boxes(manifest) == [Box(0.1, 0.2, 0.5, 0.6)] * 2
    assert manifest.column("width") == manifest.column("height") == [80, 80]


def test_heat_maps_keep_their_precision_in_mixed_precision() -> None:
    places, sounds = unit(torch.randn(2, 3, 3, 64)), unit(torch.randn(2, 64))
    with torch.autocast("cpu", torch.bfloat16):
        found = similarity_map(places, sounds)
    torch.testing.assert_close(found, (places * sounds[:, None, None]).sum(dim=-1).flatten(1))
