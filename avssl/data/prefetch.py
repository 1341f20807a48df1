"""The next batch travels to the GPU while it works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import torch

from avssl.data.batch import Batch

Item = TypeVar("Item")
Moved = TypeVar("Moved")

# Seconds between looks at whether anybody still wants the batch.
_PATIENCE = 0.1


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


def one_ahead(items: Iterable[Item], move: Callable[[Item], Moved]) -> Generator[Moved, None, None]:
    """``move(item)`` of each item in order, one of them ahead of the consumer, in a thread that ends with it.

    An exception of ``items`` or ``move`` is raised here, after what came before it.
    """
    ready: queue.Queue[tuple[Moved | None, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def offer(item: Moved | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=_PATIENCE)
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
