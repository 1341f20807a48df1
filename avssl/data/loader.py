"""From a clip dataset to batches: an endless training stream that starts at any step, and an exact evaluation pass."""

import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from avssl.data.batch import Batch
from avssl.data.clips import ClipDataset, Item
from avssl.data.failures import DataError
from avssl.data.packing import PackedBatch, pack, together
from avssl.data.processes import server
from avssl.data.samplers import EvalSampler, Key, ShardSampler, StepSampler, WeightedSampler


class ClipLoader(DataLoader[Batch]):
    """A DataLoader of :class:`Batch` whose workers cannot hang or die without the file being named."""

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: Sampler[list[Key]],
        num_workers: int,
        timeout: float,
        pin_memory: bool | None = None,
    ) -> None:
        options: dict[str, Any] = {}
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
                "timeout": timeout,
            }
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
        self.decoding.fill_(-1)
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                told = str(error)
                if "timed out" not in told and "DataLoader worker (pid" not in told:
                    raise
                raise DataError(f"{told.splitlines()[0]} {self._suspects()}") from error
            except (ConnectionError, EOFError) as error:
                if not self.num_workers or str(error).startswith("Caught "):  # raised by the dataset itself
                    raise
                raise DataError(f"A DataLoader worker died while it handed over a batch. {self._suspects()}") from error
            yield batch.unpack() if isinstance(batch, PackedBatch) else batch

    def _suspects(self) -> str:
        rows = [(since, int(row)) for row, since in self.decoding.tolist() if row >= 0]
        if not rows:
            return "No file was being decoded: the machine may be out of memory (lower num_workers or batch_size)."
        manifest = self.dataset.manifest  # type: ignore[attr-defined]
        now = time.time()
        files = [f"{manifest.row(row).path} (row {row}, for {now - since:.0f} s)" for since, row in sorted(rows)]
        return f"Being decoded, longest first: {', '.join(files)}. Leave out such a file or raise the timeout."


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
    timeout: float = 300.0,
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
        timeout: Seconds to wait for a batch before a hang is reported.
        shares: (N,) probability of each row, drawn with replacement; default: every row once an epoch.
        shards: (N,) int64, the shard of each row: rows are shuffled within ``shard_buffer`` shards, see
            :class:`ShardSampler`.
        pin_memory: Hand over batches in page-locked memory, from which a GPU copies without waiting; default: where
            there is one.

    Raises:
        DataError: the rows fill no batch; while iterating: a worker hung or died, naming the file.
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
    timeout: float = 300.0,
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
    return pack(dataset.collate(items, together))


def _report(decoding: np.ndarray, index: int) -> None:
    decoding[:] = index, time.time()


__all__: Sequence[str] = (
    "ClipLoader",
    "EvalSampler",
    "ShardSampler",
    "StepSampler",
    "WeightedSampler",
    "make_eval_loader",
    "make_train_loader",
)
