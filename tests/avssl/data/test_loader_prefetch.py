"""One batch ahead: the same batches in the same order, errors where they belong, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from avssl.data.batch import Batch
from avssl.data.loader import one_ahead, prefetched


def numbers(count: int, taken: list[int], fail_at: int = -1) -> Iterator[int]:
    for k in range(count):
        if k == fail_at:
            raise ConnectionError(f"item {k}")
        taken.append(k)
        yield k


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_come_in_order_and_ahead_of_their_use() -> None:
    taken: list[int] = []
    stream = one_ahead(numbers(20, taken), lambda k: 10 * k)
    assert next(stream) == 0
    deadline = time.monotonic() + 60
    while len(taken) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(taken) >= 2, "the second was not fetched while the first was in use"
    time.sleep(0.05)
    assert len(taken) <= 3, "no more than one waits, and one is in hand"
    assert list(stream) == [10 * k for k in range(1, 20)] and threads() == 0


def test_an_error_comes_after_what_came_before_it() -> None:
    seen: list[int] = []
    with pytest.raises(ConnectionError, match="item 3"):
        for k in one_ahead(numbers(9, [], fail_at=3), int):
            seen.append(k)
    assert seen == [0, 1, 2] and threads() == 0


def test_an_endless_stream_can_be_left() -> None:
    stream = one_ahead(numbers(10**9, []), int)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert threads() == 0


def batches(count: int, pinned: bool = False) -> Iterator[Batch]:
    for k in range(count):
        batch = Batch(
            audio=torch.full((4, 16000), float(k)),
            video=torch.full((4, 3, 8, 32, 32), k, dtype=torch.uint8),
            labels={"x": torch.full((4,), k)},
            index=torch.arange(4),
            clip_ids=[f"{k}"] * 4,
            start=torch.zeros(4, dtype=torch.float64),
        )
        yield batch.pin_memory() if pinned else batch


def test_on_a_cpu_nothing_is_ahead() -> None:
    given = list(batches(3))
    assert all(a is b for a, b in zip(prefetched(given, torch.device("cpu")), given, strict=True)) and threads() == 0


@pytest.mark.gpu
def test_batches_arrive_whole_on_the_gpu_while_it_is_busy() -> None:
    device = torch.device("cuda")
    weight = torch.randn(4096, 4096, device=device)
    sums = []
    for k, batch in enumerate(prefetched(batches(30, pinned=True), device)):
        assert batch.audio is not None and batch.video is not None
        assert batch.audio.device.type == batch.video.device.type == "cuda" and batch.start.device.type == "cpu"
        for _ in range(4):
            weight = torch.tanh(weight @ weight)  # still running when the next batch is copied
        sums.append((k, batch.audio.mean() + batch.video.float().mean(), batch.labels["x"].float().mean()))
        del batch  # its memory may be given away as soon as the stream is through with it
    assert len(sums) == 30
    assert all(total.item() == 2 * k and label.item() == k for k, total, label in sums)
