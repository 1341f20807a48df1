"""TensorBoard's event files, read back with its own reader."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avssl.tracking import Tracker, check_tracking


def events(folder: Path) -> object:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_scalars_pictures_and_config(tmp_path) -> None:
    tracker = Tracker(tmp_path, {"optim": {"lr": 0.5}}, mode="disabled", tensorboard=True)
    tracker.log({"train/loss": 2.0, "val/count": 9.0}, step=10)
    tracker.log_speed({"clips_per_second": 3.0}, step=10)
    tracker.log({"train/loss": 1.5, "val/count": 9.0}, step=20)
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "curves.png")
    tracker.log_pictures({"curves": tmp_path / "curves.png"})
    tracker.summary({"test/event/top1": 0.75, "data/digest": "abc"})
    tracker.finish()
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(10, 2.0), (20, 1.5)]
    assert [(event.step, event.value) for event in found.Scalars("clips_per_second")] == [(10, 3.0)]
    assert [(event.step, event.value) for event in found.Scalars("test/event/top1")] == [(20, 0.75)]
    assert "val/count" not in found.Tags()["scalars"]
    (image,) = found.Images("curves")
    assert (image.width, image.height, image.step) == (8, 6, 20)
    text = b"".join(found.Tensors("config/text_summary")[0].tensor_proto.string_val).decode()
    assert '"lr": 0.5' in text


def test_resumed_run_drops_what_it_writes_again(tmp_path) -> None:
    first = Tracker(tmp_path, {}, mode="disabled", tensorboard=True)
    for step in (1, 2, 3):
        first.log({"train/loss": float(step)}, step)
    first.finish()
    second = Tracker(tmp_path, {}, mode="disabled", tensorboard=True, resumed=True)
    second.rewind(1)
    second.log({"train/loss": 20.0}, 2)
    second.finish()
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]
    again = Tracker(tmp_path, {}, mode="disabled", tensorboard=True)
    again.log({"train/loss": 5.0}, 1)
    again.finish()
    assert [event.value for event in events(tmp_path).Scalars("train/loss")] == [5.0], "a run that starts over"


def test_only_where_it_is_wanted_and_only_on_one_process(tmp_path) -> None:
    Tracker(tmp_path, {}, mode="disabled").finish()
    assert not (tmp_path / "tensorboard").exists()
    Tracker(tmp_path, {}, mode="disabled", tensorboard=True, enabled=False).log({"train/loss": 1.0}, 1)
    assert not (tmp_path / "tensorboard").exists()


def test_missing_package_is_told_before_anything_is_written(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard: the package is missing: pip install 'avssl\[tensorboard\]'"):
        check_tracking("disabled", tensorboard=True)
    check_tracking("disabled", tensorboard=False)
