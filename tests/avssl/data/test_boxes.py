"""Where what sounds is in the picture: boxes of a manifest, and those of the demo against what was drawn."""

import numpy as np
import pytest

from avssl.data.boxes import Box, has_boxes, read_boxes
from avssl.data.datasets.demo import demo
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.demo import events as demo_clip
from avssl.demo.events import CLASSES, make_clip


def manifest(*values: str | None) -> Manifest:
    rows = [{"clip_id": str(i), "path": f"{i}.mp4", "box": value} for i, value in enumerate(values)]
    return Manifest.from_rows(rows, "/data")


def test_boxes_are_read_and_absent_ones_stay_absent() -> None:
    read = read_boxes(manifest("0.1 0.2 0.5 0.6", None, "0,0.25,1,1", ""))
    assert read == [Box(0.1, 0.2, 0.5, 0.6), None, Box(0, 0.25, 1, 1), None]
    assert has_boxes(manifest(None, "0 0 1 1")) and not has_boxes(manifest(None, ""))
    plain = Manifest.from_rows([{"clip_id": "a", "path": "a.mp4"}], "/data")
    assert read_boxes(plain) == [None] and not has_boxes(plain)


@pytest.mark.parametrize(
    "value", ["0.1 0.2 0.5", "left", "0 0 1.5 1", "-0.1 0 1 1", "0.5 0 0.5 1", "0 0.7 1 0.6", "nan 0 1 1"]
)
def test_what_is_no_box_is_refused_by_the_name_of_its_clip(value: str) -> None:
    with pytest.raises(DataError, match=r"box: clip '1' has .* which is no box; give a column 'box' with left, top"):
        read_boxes(manifest("0 0 1 1", value))


def test_a_mask_follows_resize_and_crops() -> None:
    """A picture of 320 x 160, of which the encoder sees the central 80 x 80: columns 120 to 200, rows 40 to 120."""
    mask = Box(130 / 320, 0.0, 160 / 320, 100 / 160).mask(160, 320, 0.5, 8)
    wanted = np.zeros((8, 8), bool)
    wanted[:6, 1:4] = True  # columns 130 to 160 and rows up to 100, in cells of 10 pixels
    np.testing.assert_array_equal(mask, wanted)
    assert not Box(0.0, 0.0, 0.1, 1.0).mask(160, 320, 0.5, 8).any()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("demo") / "set"
    return demo(folder, seed=3, pretrain=2, train_per_class=0, test_per_class=1)


def test_the_demo_says_where_what_sounds_is(rows: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pictures drawn once with and once without the body."""
    boxes = dict(zip(rows.column("clip_id"), read_boxes(rows), strict=True))
    assert all(boxes.values()) and len(boxes) == 2 + len(CLASSES)
    ious = []
    for number, event in enumerate(CLASSES):
        clip = make_clip(3, "test", number)
        with monkeypatch.context() as patch:
            patch.setattr(type(demo_clip.KINDS[event]), "paint", lambda *_: None)
            without = make_clip(3, "test", number)
        change = np.abs(clip.frames.astype(int) - without.frames).max(axis=3)  # (T, 80, 80)
        box = boxes[f"test-{number:04d}"]
        inside = box.mask(80, 80, 1.0, 80)
        drawn = change > 16
        assert (drawn & inside).sum() > 0.5 * drawn.sum(), event  # sticks, drops and halos leave the body
        (top, left), (bottom, right) = (
            np.argwhere(drawn.any(axis=0)).min(axis=0),
            np.argwhere(drawn.any(axis=0)).max(axis=0),
        )
        extent = np.zeros((80, 80), bool)
        extent[top : bottom + 1, left : right + 1] = True
        ious.append((extent & inside).sum() / (extent | inside).sum())
    assert min(ious) > 0.45 and np.mean(ious) > 0.6, ious
