import errno
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from loading_samples import wav_manifest

from avssl.data.batch import Batch
from avssl.data.clips import Clip, ClipDataset, Item
from avssl.data.failures import DataError
from avssl.data.loader import EvalSampler, StepSampler, WorkerTrouble, WorkerWatch, make_eval_loader, make_train_loader
from avssl.errors import is_of_machine


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
    """In the middle of decoding some rows, its process hangs, is stopped, or ends by a signal or by itself.

    A hang says that it has lasted for an hour, so that nobody has to wait for it. What is stopped is so once only, as
    long as ``once`` is not there.
    """

    faults: ClassVar[dict[int, str]] = {}
    once: Path

    def read_clip(self, source: Any, row: Any, index: int, span: Any) -> Clip:
        fault = self.faults.get(index)
        if fault == "hang":
            self.watch.args[0][1] -= 3600.0  # type: ignore[union-attr]
            time.sleep(600)
        elif fault == "exit":
            os._exit(11)
        elif fault == "disk":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(row.path))
        elif isinstance(fault, int) and not (fault == signal.SIGSTOP and self.once.exists()):
            self.once.touch()
            os.kill(os.getpid(), fault)
        return super().read_clip(source, row, index, span)


def stuck(folder: Path, faults: dict[int, str | int], rows: int = 6, mode: Any = "center") -> Stuck:
    dataset = Stuck(wav_manifest(folder, rows), modalities=("audio",), clip_seconds=0.5, mode=mode, seed=3)
    dataset.faults, dataset.once = faults, folder / "once"  # type: ignore[misc]
    return dataset


@pytest.mark.parametrize(
    ("fault", "reason"), [("hang", "decoder hung"), ("exit", "decoder crashed"), (signal.SIGSEGV, "decoder crashed")]
)
def test_a_clip_that_hangs_or_crashes_its_process_is_a_failure_and_the_rest_goes_on(
    tmp_path: Path, fault: str | int, reason: str, caplog
) -> None:
    loader = make_eval_loader(stuck(tmp_path, {1: fault, 4: fault}), 1, num_workers=1)
    for _ in range(2):  # the second time without a new try
        caplog.clear()
        batches = list(loader)
        assert [batch.index.tolist() for batch in batches] == [[0], [], [2], [3], [], [5]]
        failures = [failure for batch in batches for failure in batch.failures]
        assert [(failure.index, failure.reason) for failure in failures] == [(1, reason), (4, reason)]
        assert caplog.text.count("counts as failed") == (0 if _ else 2)


def test_training_goes_on_with_the_clips_that_it_would_have_had(tmp_path: Path) -> None:
    dataset = stuck(tmp_path, {2: "exit"}, 9, mode="random")
    known = stuck(tmp_path, {}, 9, mode="random")
    known.given_up = {2: "decoder crashed"}
    batches = take(make_train_loader(dataset, 4, seed=5, num_workers=2, start_step=1), 6)
    expected = take(make_train_loader(known, 4, seed=5, start_step=1), 6)
    assert all(same(a, b) for a, b in zip(batches, expected, strict=True))
    assert any(failure.index == 2 for batch in batches for failure in batch.failures)


def test_a_process_that_a_signal_stopped_is_replaced_and_no_clip_blamed(tmp_path: Path, caplog) -> None:
    batches = list(make_eval_loader(stuck(tmp_path, {1: signal.SIGSTOP}, 3), 1, num_workers=1))
    assert [batch.index.tolist() for batch in batches] == [[0], [1], [2]]
    assert not any(batch.failures for batch in batches) and "001.wav (row 1) in hand" in caplog.text


def test_several_in_a_row_end_the_run_with_the_cause(tmp_path: Path) -> None:
    dataset = stuck(tmp_path, dict.fromkeys(range(6), "exit"))
    with pytest.raises(DataError, match=r"002\.wav \(row 2\) crashed.*exit code 11.*number 3 in a row"):
        list(make_eval_loader(dataset, 1, num_workers=1))


def test_a_process_that_is_killed_from_outside_ends_the_run_and_no_clip_is_blamed(tmp_path: Path) -> None:
    dataset = stuck(tmp_path, {1: signal.SIGKILL}, 3)
    with pytest.raises(OSError, match=r"001\.wav \(row 1\).*out of memory: lower data\.num_workers") as raised:
        list(make_eval_loader(dataset, 1, num_workers=1))
    assert not dataset.given_up and is_of_machine(raised.value)


def test_an_error_of_the_machine_in_a_process_is_one_line(tmp_path: Path) -> None:
    """And is of the machine for who asks, such as a cross-validation."""
    with pytest.raises(OSError, match=r"Too many open files, in a decoding process: .*001\.wav'") as raised:
        list(make_eval_loader(stuck(tmp_path, {1: "disk"}, 3), 1, num_workers=1))
    assert "\n" not in str(raised.value) and raised.value.errno == errno.EMFILE and is_of_machine(raised.value)
    assert Path(raised.value.filename).name == "001.wav"


def test_a_slow_clip_is_told_and_waited_for(tmp_path: Path, caplog) -> None:
    loader = make_eval_loader(stuck(tmp_path, {}, 3), 1, num_workers=1)
    loader.decoding[0] = torch.tensor([1.0, time.monotonic() - 20.0])
    watch = WorkerWatch(loader, [SimpleNamespace(pid=os.getpid())])  # type: ignore[list-item]
    for _ in range(3):
        watch.check()
    assert caplog.text.count("001.wav (row 1) takes 20 s so far; data.clip_timeout is 60 s") == 1


def test_a_run_that_was_suspended_blames_no_clip(tmp_path: Path) -> None:
    """A clip in hand is then an hour old, and its process goes on with it when this one does."""
    loader = make_eval_loader(stuck(tmp_path, {}, 3), 1, num_workers=1)
    loader.decoding[0] = torch.tensor([1.0, time.monotonic() - 3600.0])
    workers: Any = [SimpleNamespace(pid=os.getpid())]
    with pytest.raises(
        WorkerTrouble, match=r"decoding hangs: .*001\.wav \(row 1\) for 3600 s, more than data\.clip_timeout"
    ):
        WorkerWatch(loader, workers).check()
    suspended = WorkerWatch(loader, workers)
    suspended.looked -= 3600.0
    suspended.check()
    suspended.check()


def test_a_row_that_cannot_be_read_is_no_longer_in_hand(tmp_path: Path) -> None:
    dataset = ClipDataset(
        wav_manifest(tmp_path, 2, broken=(1,)), modalities=("audio",), clip_seconds=0.5, mode="center"
    )
    told: list[int] = []
    dataset.watch = told.append
    assert dataset[0, 1].failures and told[-1] == -1


def test_a_worker_that_dies_while_it_hands_over_a_batch_names_the_file(tmp_path: Path, monkeypatch) -> None:
    """Its socket is then reset before torch has noticed that the process is gone."""
    dataset = ClipDataset(wav_manifest(tmp_path, 3), modalities=("audio",), clip_seconds=0.5, mode="center")
    loader = make_eval_loader(dataset, 1, num_workers=1)

    def dying(_: object) -> Iterator[None]:
        loader.decoding[0] = torch.tensor([1.0, time.monotonic()])
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", dying)
    with pytest.raises(OSError, match=r"died while it handed over a batch.*001\.wav \(row 1"):
        list(loader)


class Threads(ClipDataset):
    def __getitem__(self, key: tuple[int, int]) -> Item:
        assert torch.get_num_threads() == 1
        return super().__getitem__(key)


def test_workers_compute_with_one_thread(tmp_path: Path) -> None:
    dataset = Threads(wav_manifest(tmp_path, 2), modalities=("audio",), clip_seconds=0.5, mode="center")
    assert [batch.size for batch in make_eval_loader(dataset, 2, num_workers=1)] == [2]
