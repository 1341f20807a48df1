"""data.train_fraction: fewer training clips, the same validation and test."""

import numpy as np
import pytest

from avssl.config import DataConfig
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits, open_splits


@pytest.fixture
def name(tmp_path) -> str:
    """200 labelled training clips of two classes, one of them rare, 100 unlabelled ones and 20 of the test."""
    splits = ["train"] * 200 + ["test"] * 20 + ["pretrain"] * 100
    rows = [
        {
            "clip_id": f"{split}{k}",
            "path": f"{k}.wav",
            "split": split,
            "has_audio": True,
            "audio_end": 1.0,
            "has_video": False,
            "label.kind": None if split == "pretrain" else "rare" if k % 20 == 0 else "common",
        }
        for k, split in enumerate(splits)
    ]
    Manifest.from_rows(rows, tmp_path, {"kind": ["common", "rare"]}).save(tmp_path / "data.parquet")
    return str(tmp_path / "data.parquet")


def opened(name: str, fraction: float, labelled: bool = True, seed: int = 0) -> Splits:
    config = DataConfig(name, val_fraction=0.2, train_fraction=fraction)
    return open_splits(config, modalities=("audio",), labelled=labelled, seed=seed)


def ids(manifest: Manifest | None) -> list[str]:
    assert manifest is not None
    return manifest.column("clip_id")


def test_only_the_training_split_shrinks_and_keeps_its_classes(name: str) -> None:
    full, share = opened(name, 1.0), opened(name, 0.05)
    assert len(full.train) == 160 and "share" not in full.coverage["train"]
    assert ids(share.val) == ids(full.val) and ids(share.test) == ids(full.test)
    assert set(ids(share.train)) < set(ids(full.train))
    common, rare = np.bincount(share.train.labels("kind"))
    assert rare == 1 and 7 <= common <= 8
    assert share.coverage["train"]["share"] == {"fraction": 0.05, "clips": common + rare}
    assert ids(opened(name, 0.05).train) == ids(share.train)


def test_unlabelled_clips_are_drawn_alike(name: str) -> None:
    splits = opened(name, 0.5, labelled=False)
    assert len(splits.train) == 40 and splits.coverage["pretrain"]["share"]["clips"] == 40  # 20 are validation


def test_no_share_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"data\.train_fraction: must lie in \(0, 1\], got 0"):
        opened(name, 0.0)
