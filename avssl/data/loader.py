"""From a clip dataset to batches: an endless training stream that starts at any step, and an exact evaluation pass.

The next batch travels to the GPU while it works on this one.
"""

import errno
import logging
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from avssl.data.batch import Batch, PackedBatch, pack, tensors_in_one_buffer
from avssl.data.clips import ClipDataset, Item
from avssl.data.failures import DataError
from avssl.data.processes import FROM_OUTSIDE, is_stopped, server
from avssl.data.samplers import EvalSampler, Key, ShardSampler, StepSampler, WeightedSampler
from avssl.errors import is_of_machine, machine_error

logger = logging.getLogger(__name__)

# Seconds between looks at the processes while a batch is waited for; looks in a row that find one stopped; seconds for
# a process to begin; for one that closed its connection to end; the share of the limit from which a clip is slow; and
# seconds between two looks after which this process, too, has been stopped.
_LOOK, _STOPPED_LOOKS, _START, _PATIENCE, _SLOW, _SUSPENDED = 1.0, 3, 300.0, 10.0, 0.25, 10.0
# So many processes that hang or crash without a batch between them end the run.
_IN_A_ROW = 3


class ClipLoader(DataLoader[Batch]):
    """A DataLoader of :class:`Batch` whose processes cannot hang or die without a word.

    A clip that takes longer than the limit, or that crashes its process, counts as failed, and processes in the place
    of all go on behind the last batch: what they give does not depend on it, that clip apart.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: Sampler[list[Key]],
        num_workers: int,
        timeout: float,
        pin_memory: bool | None = None,
    ) -> None:
        options: dict[str, Any] = {}
        if not timeout > 0:
            raise ValueError(f"data.clip_timeout: must be positive, got {timeout:g}")
        self.decoding = torch.full((max(1, num_workers), 2), -1.0, dtype=torch.float64)  # row and since when, by worker
        if num_workers > 0:
            if type(dataset).__module__ == "__main__":
                kind = type(dataset).__name__
                raise DataError(f"{kind} is defined in the script that is run, which decoding processes do not import: "
                                "put it into a module of its own, or give num_workers 0")  # fmt: skip
            self.decoding.share_memory_()
            options = {
                "multiprocessing_context": server(),
                "worker_init_fn": partial(_init_worker, decoding=self.decoding),
                "timeout": _LOOK,
            }
        self.clip_timeout = timeout
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=partial(_packed, dataset) if num_workers else dataset.collate,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            # Its own generator: a loader that draws from the global one would make a resumed run differ.
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self.num_workers:
            yield from super().__iter__()
            return
        done = in_a_row = 0
        while True:
            self.batch_sampler.skip = done  # type: ignore[union-attr]
            self.decoding.fill_(-1)
            batches = super().__iter__()
            try:
                while (batch := self._next(batches)) is not None:
                    done, in_a_row = done + 1, 0 if batch.size else in_a_row
                    yield batch
                return
            except WorkerTrouble as trouble:
                in_a_row += 1
                if in_a_row == _IN_A_ROW:
                    raise DataError(
                        f"{trouble}; it is number {_IN_A_ROW} in a row, without a clip between them"
                    ) from trouble
                given_up = "counts as failed" if trouble.rows else "is decoded again"
                logger.warning("%s: it %s, and decoding starts over in new processes", trouble, given_up)
                self.dataset.given_up |= trouble.rows  # type: ignore[attr-defined]
                _end(batches)

    def _next(self, batches: Iterator[Batch | PackedBatch]) -> Batch | None:
        """The next batch, None after the last.

        Raises:
            WorkerTrouble: a process hung, crashed or was stopped; others can take its place.
            DataError, OSError: of what no others would be spared.
        """
        watch = WorkerWatch(self, getattr(batches, "_workers", []))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return None
            except RuntimeError as error:
                told = str(error)
                if told.startswith("DataLoader timed out"):
                    watch.check()
                    continue
                if told.startswith("Too many open files"):  # torch's way out follows
                    raise machine_error(errno.EMFILE, " ".join(told.split())) from error
                if "DataLoader worker (pid" not in told:
                    raise
                raise watch.dead(told.splitlines()[0]) from error
            except (OSError, EOFError) as error:
                if str(error).startswith("Caught "):  # raised by the dataset itself, in a traceback of many lines
                    raise _of_worker(str(error).splitlines()[-1]) from error
                if not isinstance(error, ConnectionError | EOFError):
                    raise
                raise watch.dead("A DataLoader worker died while it handed over a batch.") from error
            return batch.unpack() if isinstance(batch, PackedBatch) else batch

    def name(self, row: int) -> str:
        """A row for a message."""
        return f"{self.dataset.manifest.row(row).path} (row {row})"  # type: ignore[attr-defined]


def _of_worker(told: str) -> Exception:
    """The error that a decoding process told in a line: of the machine, with its number and file, as it was there."""
    if found := re.fullmatch(r"\w+: \[Errno (\d+)\] ([^:]*)(?:: '(.*)')?", told):
        error = OSError(int(found[1]), f"{found[2]}, in a decoding process", found[3])
        if is_of_machine(error):
            return error
    return DataError(f"{told}, in a decoding process")


class WorkerTrouble(Exception):
    """A process has to be replaced; ``rows``: of those that are not to be tried again, why."""

    def __init__(self, told: str, rows: dict[int, str]) -> None:
        super().__init__(told)
        self.rows = rows


class WorkerWatch:
    """Tells dead, stopped, hung and slow processes apart while a batch is waited for."""

    def __init__(self, loader: ClipLoader, workers: Sequence[BaseProcess]) -> None:
        self.loader, self.workers = loader, workers
        self.began = self.looked = time.monotonic()
        self.resumed = 0.0
        self.stopped = [0] * len(workers)
        self.slow: set[int] = set()

    def check(self) -> None:
        """Warns of slow processes.

        Raises:
            WorkerTrouble: one was stopped, or hangs.
            DataError: none ever begins.
        """
        limit, now = self.loader.clip_timeout, time.monotonic()
        if now - self.looked > _SUSPENDED:  # this process was stopped for so long, and surely the others with it
            self.resumed = now
        self.looked = now
        hung: dict[int, float] = {}
        idle = []
        for number, (worker, (where, began)) in enumerate(
            zip(self.workers, self.loader.decoding.tolist(), strict=True)
        ):
            row, pid, since = int(where), worker.pid, max(began, self.resumed)
            self.stopped[number] = self.stopped[number] + 1 if pid is not None and is_stopped(pid) else 0
            if self.stopped[number] == _STOPPED_LOOKS:
                what = self.loader.name(row) if row >= 0 else "no file"
                raise WorkerTrouble(f"decoding process {pid} was stopped by a signal; it had {what} in hand", {})
            if row >= 0 and now - since > limit:
                hung[row] = now - since
            elif row >= 0 and now - since > _SLOW * limit and row not in self.slow:
                self.slow.add(row)
                logger.warning(
                    "%s takes %.0f s so far; data.clip_timeout is %g s", self.loader.name(row), now - since, limit
                )
            idle.append(row < 0 and now - max(since, self.began) > max(limit, _START))
        if hung:
            files = ", ".join(f"{self.loader.name(row)} for {seconds:.0f} s" for row, seconds in hung.items())
            told = f"decoding hangs: {files}, more than data.clip_timeout {limit:g} s"
            raise WorkerTrouble(told, dict.fromkeys(hung, "decoder hung"))
        if idle and all(idle):
            raise DataError(
                f"no batch came for {now - self.began:.0f} s, though no file is being decoded: the machine may be out "
                "of memory; lower data.num_workers or optim.batch_size"
            )

    def dead(self, told: str) -> WorkerTrouble | OSError:
        """What to raise of a process that died: WorkerTrouble where a file crashed it, else an error of the machine."""
        until = time.monotonic() + _PATIENCE  # its connection may be gone before it is
        while all(worker.is_alive() for worker in self.workers) and time.monotonic() < until and self.workers:
            time.sleep(0.05)
        now = time.monotonic()
        hands = self.loader.decoding.tolist()
        dead = [number for number, worker in enumerate(self.workers) if not worker.is_alive()]
        rows = [int(hands[number][0]) for number in dead if hands[number][0] >= 0]
        if rows and not any(self.workers[number].exitcode in FROM_OUTSIDE for number in dead):
            files = ", ".join(map(self.loader.name, rows))
            codes = ", ".join(str(self.workers[number].exitcode) for number in dead)
            return WorkerTrouble(
                f"{files} crashed its decoding process (exit code {codes})", dict.fromkeys(rows, "decoder crashed")
            )
        suspects = [(since, int(row)) for row, since in hands if row >= 0]
        files = ", ".join(f"{self.loader.name(row)} for {now - since:.0f} s" for since, row in sorted(suspects))
        doing = f"Being decoded, longest first: {files}." if files else "No file was being decoded."
        return machine_error(
            errno.ENOMEM,
            f"{told} {doing} The machine may be out of memory: lower data.num_workers or optim.batch_size, and run the "
            "same command again.",
        )


def _end(batches: Any) -> None:
    """Kills the processes of an iterator, also those that no longer listen, and closes it."""
    for worker in batches._workers:
        worker.kill()
    batches._shutdown_workers()


def make_train_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    drop_last: bool = True,
    timeout: float = 60.0,
    shares: np.ndarray | None = None,
    shards: np.ndarray | None = None,
    shard_buffer: int = 8,
    pin_memory: bool | None = None,
) -> ClipLoader:
    """An endless loader of training batches; ``loader.batch_sampler.steps_per_epoch`` counts an epoch's.

    Args:
        dataset: In mode "random".
        batch_size: Rows per step and rank.
        seed, start_step, rank, world, drop_last: See :class:`StepSampler`; a step is one batch, whether or not the
            engine accumulates several before it updates.
        num_workers: Decoding processes (forkserver, one torch thread each); 0 decodes in this process.
        timeout: Seconds that a process may take for a clip.
        shares: (N,) probability of each row, drawn with replacement; default: every row once an epoch.
        shards: (N,) int64, the shard of each row: rows are shuffled within ``shard_buffer`` shards, see
            :class:`ShardSampler`.
        pin_memory: Hand over batches in page-locked memory, from which a GPU copies without waiting; default: where
            there is one.

    Raises:
        DataError: the rows fill no batch; while iterating: several processes in a row hung or crashed, naming the file,
            or one was killed from outside.
    """
    if shard_buffer < 1:
        raise ValueError(f"data.shard_buffer: must be at least 1, got {shard_buffer}")
    options = (batch_size, seed, start_step, rank, world, drop_last)
    sampler: StepSampler
    if shards is not None:
        sampler = ShardSampler(shards, shard_buffer, *options)
    else:
        sampler = StepSampler(len(dataset), *options) if shares is None else WeightedSampler(shares, *options)
    return ClipLoader(dataset, sampler, num_workers, timeout, pin_memory)


def make_eval_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    timeout: float = 60.0,
) -> ClipLoader:
    """A loader of every row exactly once, in order; see :class:`EvalSampler` and :func:`make_train_loader`.

    Rows that cannot be read are absent from their batch and listed in its ``failures``; a batch may be empty.
    """
    if dataset.mode == "random":
        raise ValueError("evaluation needs a dataset of mode 'center' or 'uniform': 'random' replaces unreadable rows")
    return ClipLoader(dataset, EvalSampler(len(dataset), batch_size, rank, world), num_workers, timeout)


def _init_worker(worker: int, decoding: Tensor) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the training process decides, workers do not chime in
    info = torch.utils.data.get_worker_info()
    assert info is not None
    info.dataset.watch = partial(_report, decoding.numpy()[worker])  # type: ignore[attr-defined]


def _packed(dataset: ClipDataset, items: Sequence[Item]) -> PackedBatch:
    return pack(dataset.collate(items, tensors_in_one_buffer))


def _report(decoding: np.ndarray, index: int) -> None:
    decoding[1] = time.monotonic()  # first: a row must not be read with the time of the one before
    decoding[0] = index


__all__: Sequence[str] = (
    "ClipLoader",
    "EvalSampler",
    "ShardSampler",
    "StepSampler",
    "WeightedSampler",
    "make_eval_loader",
    "make_train_loader",
)


Given = TypeVar("Given")
Moved = TypeVar("Moved")

# Seconds between looks at whether anybody still wants the batch.
_LOOK_EVERY = 0.1


def prefetched(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches in their order, on a CUDA ``device`` one ahead; for other devices as they come.

    A thread takes a batch from the loader as soon as there is one, and copies it on a stream of its own: from
    page-locked memory, that runs beside the kernels of the step before. The step waits on the GPU for the copy, never
    on the CPU.

    Args:
        batches: From a loader with ``pin_memory``; without, the copy is right, but the thread waits for it.
        device: Where the step computes.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def move(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            moved = batch.to(device, non_blocking=True)
            return moved, stream.record_event()

    ahead = one_ahead(batches, move)
    try:
        for batch, copied in ahead:
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            batch.record_stream(current)
            yield batch
    finally:
        ahead.close()


def one_ahead(items: Iterable[Given], move: Callable[[Given], Moved]) -> Generator[Moved, None, None]:
    """``move(item)`` of each item in order, one of them ahead of the consumer, in a thread that ends with it.

    An exception of ``items`` or ``move`` is raised here, after what came before it.
    """
    ready: queue.Queue[tuple[Moved | None, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def offer(item: Moved | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=_LOOK_EVERY)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer(move(item), None)
                if stopped.is_set():
                    return
            offer(None, StopIteration())
        except BaseException as error:  # raised again where the batch was wanted
            offer(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(timeout=1.0)
