"""A batch comes out of its one piece of memory as it went in."""

import pickle
from dataclasses import fields

import pytest
import torch

from avssl.data.batch import Allocate, Batch, PackedBatch, pack, separate_tensors, tensors_in_one_buffer
from avssl.data.failures import Failure


def make_batch(size: int, modalities: tuple[str, ...], allocate: Allocate = tensors_in_one_buffer) -> Batch:
    tensors = {
        "audio": torch.randn(size, 17),
        "video": torch.randint(256, (size, 2, 5, 5, 3), dtype=torch.uint8),
        "index": torch.arange(size) + 7,
        "start": torch.rand(size, dtype=torch.float64),
        "digit": torch.arange(size),
        "tags": torch.rand(size, 3),
    }
    made = allocate([(tensor.shape, tensor.dtype) for tensor in tensors.values()])
    placed = {name: part.copy_(tensors[name]) for name, part in zip(tensors, made, strict=True)}
    return Batch(
        audio=placed["audio"] if "audio" in modalities else None,
        video=placed["video"].permute(0, 4, 1, 2, 3) if "video" in modalities else None,
        labels={"digit": placed["digit"], "tags": placed["tags"]},
        index=placed["index"],
        clip_ids=[f"clip {k}" for k in range(size)],
        start=placed["start"],
        failures=[Failure("x.wav", "no audio stream")],
        missing=1,
    )


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio",), ("video",), ()])
def test_nothing_is_lost(size: int, modalities: tuple[str, ...]) -> None:
    batch = make_batch(size, modalities)
    travelled: PackedBatch = pickle.loads(pickle.dumps(pack(batch)))
    found = travelled.unpack()
    for field in fields(Batch):
        one, other = getattr(found, field.name), getattr(batch, field.name)
        if field.name in ("clip_ids", "failures", "missing"):
            assert one == other
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert found.start.dtype == torch.float64 and (found.video is None or found.video.dtype == torch.uint8)


def test_all_tensors_share_one_piece_of_memory() -> None:
    found = pack(make_batch(3, ("audio", "video"))).unpack()
    tensors = [found.audio, found.video, found.index, found.start, *found.labels.values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None}) == 1


def test_what_lies_apart_is_not_packed() -> None:
    with pytest.raises(ValueError, match="allocate=tensors_in_one_buffer"):
        pack(make_batch(2, ("audio",), separate_tensors))


@pytest.mark.gpu
def test_pinned_memory_is_that_of_the_whole_batch() -> None:
    found = pack(make_batch(2, ("audio",))).pin_memory().unpack()
    assert found.audio is not None and found.audio.is_pinned() and found.labels["digit"].is_pinned()
