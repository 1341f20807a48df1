import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_samples import wav_manifest, write_clock_video, write_ramp_wav

from avssl.data.batch import pack, tensors_in_one_buffer
from avssl.data.clips import ClipDataset, center_square
from avssl.data.manifest import Manifest


def seconds_of(audio: torch.Tensor) -> torch.Tensor:
    """The time that a ramp's samples tell."""
    return audio / 0.05


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("clock")
    write_clock_video(root / "clock.mkv", 10.0)
    facts = {"path": "clock.mkv", "duration": 10.0, "has_audio": True, "has_video": True}
    rows = [
        {"clip_id": "whole", **facts},
        {"clip_id": "segment", "start": 4.0, "end": 7.0, **facts},
        {"clip_id": "short", "start": 6.0, "end": 6.8, **facts},
        {"clip_id": "beyond", "start": 9.0, "end": 12.0, **facts},
    ]
    return Manifest.from_rows(rows, root)


def test_a_worker_gets_the_same_rows_and_no_more_of_them(tmp_path: Path) -> None:
    rows = [{"clip_id": str(k), "path": f"{k}.wav", "label.x": [k, 1], "note": "long", "width": 9} for k in range(3)]
    manifest = Manifest.from_rows(rows, tmp_path, {"x": ["a", "b", "c"]})
    dataset = ClipDataset(manifest, clip_seconds=1.0, seed=4)
    there = pickle.loads(pickle.dumps(dataset))
    assert [there.manifest.row(k) for k in range(3)] == [manifest.row(k) for k in range(3)]
    assert there.manifest.multilabel == {"x"} and there.seed == 4
    assert "note" not in there.manifest.table.column_names and dataset.manifest is manifest


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("epoch", range(3))
def test_sound_and_frames_show_the_same_span(clock: Manifest, row: int, epoch: int) -> None:
    dataset = ClipDataset(clock, clip_seconds=2.0, num_frames=4, frame_size=16, seed=epoch)
    item = dataset[epoch, row]
    batch = dataset.collate([item])
    assert batch.failures == [] and batch.audio is not None and batch.video is not None
    start, fraction = batch.start.item(), item.clips[0].audio_fraction
    low, high = {0: (0, 10), 1: (4, 7), 2: (6, 6.8), 3: (9, 10)}[row]
    assert low - 1e-6 <= start and start + 2 * fraction <= high + 0.01
    assert fraction == pytest.approx(min(1.0, (high - low) / 2), abs=0.01)
    signal = seconds_of(batch.audio[0, : int(fraction * 32000) - 50])
    assert torch.allclose(signal, start + torch.arange(len(signal)) / 16000, atol=0.01)
    assert batch.audio[0, int(fraction * 32000) + 50 :].abs().sum() == 0
    times = (batch.video[0].float().mean((0, 2, 3)) - 20) / 20
    wanted = start + (np.arange(4) + 0.5) / 4 * 2 * fraction
    # A frame is on screen for 0.05 s, and the codec is off by up to two grey levels, 0.1 s.
    assert np.abs(times.numpy() - wanted).max() < 0.16


def test_clips_are_collated_into_one_piece_of_memory(clock: Manifest) -> None:
    dataset = ClipDataset(clock, clip_seconds=1.0, num_frames=3, frame_size=24, mode="center")
    items = [dataset[0, row] for row in range(3)]
    one, other = dataset.collate(items), dataset.collate(items, tensors_in_one_buffer)
    for name in ("audio", "video", "index", "start", "samples"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.clip_ids == other.clip_ids and pack(other).unpack().clip_ids == one.clip_ids
    with pytest.raises(ValueError, match="lie in one buffer"):
        pack(one)


def test_frames_are_resized_and_cut_to_the_centre(clock: Manifest) -> None:
    dataset = ClipDataset(clock, modalities=("video",), clip_seconds=2.0, num_frames=3, frame_size=24, mode="center")
    batch = dataset.collate([dataset[0, 0], dataset[0, 1]])
    assert batch.audio is None and batch.video is not None
    assert batch.video.shape == (2, 3, 3, 24, 24) and batch.video.dtype == torch.uint8
    assert batch.video.permute(0, 2, 3, 4, 1).is_contiguous()  # copied as decoded, put into order on the device
    frames = np.arange(6).reshape(1, 1, 6, 1).repeat(4, 1)
    assert center_square(frames, 4)[0, :, :, 0].tolist() == [[1, 2, 3, 4]] * 4
    with pytest.raises(ValueError, match="6x4 hold no 5x5"):
        center_square(frames, 5)


def test_random_clips_depend_on_seed_epoch_and_row_only(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 4)
    starts = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            for row in (3, 0):
                dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0, seed=seed)
                starts[seed, epoch, row] = dataset[epoch, row].clips[0].start
                assert dataset[epoch, row].clips[0].start == starts[seed, epoch, row]
    assert len(set(starts.values())) == 8


def test_uniform_clips_are_flattened_with_their_row(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 3, seconds=3.0)
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0, mode="uniform", clips_per_item=3)
    batch = dataset.collate([dataset[0, 2], dataset[0, 1]])
    assert batch.index.tolist() == [2, 2, 2, 1, 1, 1]
    assert batch.labels["number"].tolist() == [2, 2, 2, 1, 1, 1]
    assert batch.start.tolist() == [0.0, 1.0, 2.0] * 2
    assert batch.clip_ids == ["002"] * 3 + ["001"] * 3
    assert batch.audio is not None and batch.audio.shape == (6, 16000) and batch.video is None
    assert torch.allclose(seconds_of(batch.audio[1, ::4000]), torch.tensor([1.0, 1.25, 1.5, 1.75]), atol=1e-2)


def test_a_short_file_gives_the_same_padded_clip_several_times(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 1, seconds=0.5)
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0, mode="uniform", clips_per_item=3)
    item = dataset[0, 0]
    batch = dataset.collate([item])
    assert batch.audio is not None and batch.size == 3 and batch.rows_read == 1
    assert [clip.audio_fraction for clip in item.clips] == pytest.approx([0.5] * 3)
    assert torch.equal(batch.audio[0], batch.audio[2]) and batch.audio[0, 8000:].abs().sum() == 0


def test_training_replaces_an_unreadable_row_and_tells(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 6, broken=(2, 4))
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0)
    batch = dataset.collate([dataset[0, row] for row in range(6)])
    assert batch.size == 6 and batch.missing == 0
    assert {2, 4} & set(batch.index.tolist()) == set()
    assert {failure.index for failure in batch.failures} == {2, 4}
    failure = batch.failures[0]
    assert failure.path == str(tmp_path / "002.wav") and failure.reason == "not a media file"
    again = dataset.collate([dataset[0, row] for row in range(6)])
    assert torch.equal(again.index, batch.index) and torch.equal(again.start, batch.start)


def test_a_replacement_shows_the_clip_that_its_row_has_in_this_epoch(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 6, broken=(2,))
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0)
    clip = dataset[5, 2].clips[0]
    assert clip.start == dataset[5, clip.index].clips[0].start


def test_retries_are_bounded(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 3, broken=(0, 1, 2))
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0, retries=4)
    item = dataset[0, 1]
    assert item.clips == [] and len(item.failures) == 5 and item.failures[0].index == 1
    assert dataset.collate([item]).missing == 1


@pytest.mark.parametrize("mode", ["center", "uniform"])
def test_evaluation_never_replaces_a_row(tmp_path: Path, mode: str) -> None:
    manifest = wav_manifest(tmp_path, 4, broken=(1,))
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0, mode=mode)  # type: ignore[arg-type]
    batch = dataset.collate([dataset[0, row] for row in range(4)])
    assert batch.index.tolist() == [0, 2, 3] and batch.missing == 1
    assert [failure.index for failure in batch.failures] == [1]


def test_an_evaluation_batch_may_be_empty(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 1, broken=(0,))
    dataset = ClipDataset(manifest, clip_seconds=1.0, num_frames=2, frame_size=8, mode="center")
    batch = dataset.collate([dataset[0, 0]])
    assert batch.audio is not None and batch.audio.shape == (0, 16000)
    assert batch.video is not None and batch.video.shape == (0, 3, 2, 8, 8)
    assert batch.labels["number"].dtype == torch.int64 and batch.size == 0 and batch.missing == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "unknown duration"),
        ({"start": 4.0, "duration": 3.0}, "segment outside file"),
        ({"duration": 3.0}, "no video stream"),
    ],
)
def test_rows_that_cannot_be_cut_are_failures(tmp_path: Path, facts: dict[str, float], reason: str) -> None:
    write_ramp_wav(tmp_path / "a.wav", 3.0)
    manifest = Manifest.from_rows([{"clip_id": "a", "path": "a.wav", **facts}], tmp_path)
    assert [failure.reason for failure in ClipDataset(manifest, clip_seconds=1.0, mode="center")[0, 0].failures] == [
        reason
    ]


def test_unlabelled_rows_have_label_minus_one(tmp_path: Path) -> None:
    write_ramp_wav(tmp_path / "a.wav", 3.0)
    rows = [{"clip_id": "a", "path": "a.wav", "duration": 3.0}]
    dataset = ClipDataset(Manifest.from_rows(rows, tmp_path, {"x": ["u", "v"]}), modalities=["audio"], clip_seconds=1.0)
    assert dataset.collate([dataset[0, 0]]).labels["x"].tolist() == [-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"modalities": ()},
        {"modalities": ("sound",)},
        {"mode": "middle"},
        {"mode": "center", "clips_per_item": 2},
        {"clip_seconds": 0.0},
        {"num_frames": 0},
    ],
)
def test_senseless_arguments_are_named(tmp_path: Path, arguments: dict) -> None:
    manifest = Manifest.from_rows([{"clip_id": "a", "path": "a.wav"}], tmp_path)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ClipDataset(manifest, **{"clip_seconds": 1.0, **arguments})


@pytest.mark.realdata
def test_real_talking_faces(real_data: Path) -> None:
    files = sorted((real_data / "grid" / "clips").glob("*.mp4"))[:3]
    rows = [{"clip_id": file.stem, "path": file.name, "duration": 3.0} for file in files]
    dataset = ClipDataset(Manifest.from_rows(rows, files[0].parent), clip_seconds=2.0, num_frames=4, frame_size=64)
    items = [dataset[0, row] for row in range(3)]
    batch = dataset.collate(items)
    assert batch.failures == [] and batch.audio is not None and batch.video is not None
    assert batch.video.shape == (3, 3, 4, 64, 64) and 40 < batch.video.float().mean() < 215
    assert (batch.audio.std(1) > 1e-3).all() and all(item.clips[0].audio_fraction > 0.99 for item in items)
