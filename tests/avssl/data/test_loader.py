import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loading_samples import wav_manifest

from avssl.data.batch import Batch
from avssl.data.clips import ClipDataset, Item
from avssl.data.failures import DataError
from avssl.data.loader import EvalSampler, StepSampler, make_eval_loader, make_train_loader


def take(iterable: object, count: int) -> list:
    return list(itertools.islice(iter(iterable), count))  # type: ignore[call-overload]


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("drop_last", [True, False])
def test_starting_at_a_step_is_the_same_as_skipping_to_it(start: int, drop_last: bool) -> None:
    for rank in range(2):
        arguments = {"size": 23, "batch_size": 2, "seed": 3, "rank": rank, "world": 2, "drop_last": drop_last}
        whole = take(StepSampler(**arguments), 20)
        resumed = StepSampler(**arguments, start_step=start)
        assert take(resumed, 20 - start) == whole[start:]
        assert [resumed.batch(step) for step in range(20)] == whole


def test_an_epoch_holds_every_row_once_over_all_ranks() -> None:
    samplers = [StepSampler(24, 4, seed=1, rank=rank, world=3) for rank in range(3)]
    assert samplers[0].steps_per_epoch == 2
    for epoch in range(3):
        keys = [key for sampler in samplers for step in (0, 1) for key in sampler.batch(2 * epoch + step)]
        assert {e for e, _ in keys} == {epoch}
        assert sorted(row for _, row in keys) == list(range(24))
    assert samplers[0].batch(0) != [(0, row) for _, row in samplers[0].batch(2)]


def test_the_same_rows_train_together_whatever_the_number_of_ranks() -> None:
    one = StepSampler(50, 8, seed=1)
    four = [StepSampler(50, 2, seed=1, rank=rank, world=4) for rank in range(4)]
    for step in range(10):
        assert one.batch(step) == [key for sampler in four for key in sampler.batch(step)]


def test_the_last_batch_is_dropped_or_filled_up() -> None:
    assert StepSampler(10, 4).steps_per_epoch == 2
    full = StepSampler(10, 4, drop_last=False)
    rows = [row for step in range(3) for _, row in full.batch(step)]
    assert full.steps_per_epoch == 3 and len(rows) == 12 and set(rows) == set(range(10))
    assert [row for _, row in StepSampler(3, 8, drop_last=False).batch(0)][3:6] == rows_of(StepSampler(3, 3), 0)


def rows_of(sampler: StepSampler, step: int) -> list[int]:
    return [row for _, row in sampler.batch(step)]


def test_too_few_rows_are_refused_with_the_fix() -> None:
    with pytest.raises(DataError, match=r"10 training clips fill no batch of 6 on 2 process.*at most 5"):
        StepSampler(10, 6, world=2)
    with pytest.raises(DataError, match="no clip to train on"):
        StepSampler(0, 6)


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (2, 3), (0, 2), (9, 3)])
def test_evaluation_visits_every_row_once_in_order(size: int, world: int) -> None:
    samplers = [EvalSampler(size, 2, rank, world) for rank in range(world)]
    assert [row for sampler in samplers for batch in sampler for _, row in batch] == list(range(size))
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)


def same(first: Batch, second: Batch) -> bool:
    assert first.audio is not None and second.audio is not None
    return (
        torch.equal(first.audio, second.audio)
        and torch.equal(first.index, second.index)
        and torch.equal(first.start, second.start)
        and [str(failure) for failure in first.failures] == [str(failure) for failure in second.failures]
    )


def test_clips_do_not_depend_on_workers_or_interruption(tmp_path: Path) -> None:
    dataset = ClipDataset(wav_manifest(tmp_path, 9, broken=(3,)), modalities=("audio",), clip_seconds=0.5, seed=7)
    state = torch.random.get_rng_state()
    alone = take(make_train_loader(dataset, 4, seed=5), 6)
    assert sum(len(batch.failures) for batch in alone) > 0
    for workers, start in ((0, 3), (1, 0), (2, 3)):
        loader = make_train_loader(dataset, 4, seed=5, num_workers=workers, start_step=start)
        batches = take(loader, 6 - start)
        assert all(same(a, b) for a, b in zip(alone[start:], batches, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state), "loading must not draw from the global generator"


def test_evaluation_through_workers_is_complete_and_reports_what_is_not_there(tmp_path: Path) -> None:
    manifest = wav_manifest(tmp_path, 7, broken=(2, 3))
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=0.5, mode="center")
    loader = make_eval_loader(dataset, 2, num_workers=1)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 4
        assert [batch.index.tolist() for batch in batches] == [[0, 1], [], [4, 5], [6]]
        assert [failure.index for batch in batches for failure in batch.failures] == [2, 3]


def test_evaluation_refuses_a_dataset_that_replaces_rows(tmp_path: Path) -> None:
    dataset = ClipDataset(wav_manifest(tmp_path, 2), modalities=("audio",), clip_seconds=0.5)
    with pytest.raises(ValueError, match="mode 'center' or 'uniform'"):
        make_eval_loader(dataset, 2)


class Stuck(ClipDataset):
    """Hangs, or kills its process, in the middle of decoding row 1."""

    fatal = False

    def __getitem__(self, key: tuple[int, int]) -> Item:
        if key[1] == 1:
            assert self.watch is not None
            self.watch(1)
            if self.fatal:
                os._exit(11)
            time.sleep(600)
        return super().__getitem__(key)


@pytest.mark.parametrize("fatal", [False, True])
def test_a_stuck_or_dead_worker_is_an_error_that_names_the_file(tmp_path: Path, fatal: bool) -> None:
    dataset = Stuck(wav_manifest(tmp_path, 3), modalities=("audio",), clip_seconds=0.5, mode="center")
    dataset.fatal = fatal
    # Once without trouble: then the server of processes has its imports, and a worker is there at once.
    list(
        make_eval_loader(
            ClipDataset(wav_manifest(tmp_path, 1), modalities=("audio",), clip_seconds=0.5, mode="center"),
            1,
            num_workers=1,
        )
    )
    with pytest.raises(DataError, match=r"001\.wav \(row 1"):
        list(make_eval_loader(dataset, 1, num_workers=1, timeout=5.0))


def test_a_worker_that_dies_while_it_hands_over_a_batch_names_the_file(tmp_path: Path, monkeypatch) -> None:
    """Its socket is then reset before torch has noticed that the process is gone."""
    dataset = ClipDataset(wav_manifest(tmp_path, 3), modalities=("audio",), clip_seconds=0.5, mode="center")
    loader = make_eval_loader(dataset, 1, num_workers=1)

    def dying(_: object) -> Iterator[None]:
        loader.decoding[0] = torch.tensor([1.0, time.time()])
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", dying)
    with pytest.raises(DataError, match=r"died while it handed over a batch.*001\.wav \(row 1"):
        list(loader)


class Threads(ClipDataset):
    def __getitem__(self, key: tuple[int, int]) -> Item:
        assert torch.get_num_threads() == 1
        return super().__getitem__(key)


def test_workers_compute_with_one_thread(tmp_path: Path) -> None:
    dataset = Threads(wav_manifest(tmp_path, 2), modalities=("audio",), clip_seconds=0.5, mode="center")
    assert [batch.size for batch in make_eval_loader(dataset, 2, num_workers=1)] == [2]
