import pytest
import torch

from avssl.data.batch import Batch
from avssl.data.failures import Failure


def make_batch() -> Batch:
    return Batch(
        audio=torch.randn(2, 16),
        video=torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8),
        labels={"digit": torch.tensor([3, -1])},
        index=torch.tensor([5, 9]),
        clip_ids=["a", "b"],
        start=torch.tensor([0.5, 1.0], dtype=torch.float64),
        failures=[Failure("x.wav", "no audio stream")],
        missing=1,
    )


def test_to_moves_every_tensor_but_start_and_keeps_the_rest() -> None:
    batch = make_batch()
    moved = batch.to("meta")
    tensors = [moved.audio, moved.video, moved.labels["digit"], moved.index]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert moved.start.device.type == "cpu"
    assert (moved.clip_ids, moved.failures, moved.missing, moved.size) == (batch.clip_ids, batch.failures, 1, 2)
    assert batch.index.device.type == "cpu"


def test_modalities_may_be_absent() -> None:
    batch = make_batch()
    silent = Batch(None, None, {}, batch.index, batch.clip_ids, batch.start).to("cpu")
    assert silent.audio is None and silent.video is None and len(silent) == 2 and silent.failures == []


@pytest.mark.gpu
def test_pinned_batches_reach_the_device() -> None:
    pinned = make_batch().pin_memory()
    assert pinned.audio is not None and pinned.audio.is_pinned() and pinned.labels["digit"].is_pinned()
    assert pinned.to("cuda").index.tolist() == [5, 9]
