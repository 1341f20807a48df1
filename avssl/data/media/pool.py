"""Reading many files in processes of their own, so that a decoder that crashes or hangs costs one file."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from avssl.data.media.errors import raise_if_machine
from avssl.data.media.probe import MediaInfo, probe
from avssl.data.processes import FROM_OUTSIDE, is_stopped, server
from avssl.errors import machine_error

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

_CHUNK = 32
# Of mallopt, as <malloc.h> has them; and bytes that a worker keeps.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 26
# Seconds for a process that has closed its connection to end.
_PATIENCE = 10.0
# A job that takes so many seconds may be one of a process that was stopped.
_SUSPICIOUS = 3.0
# Seconds between two looks at the processes after which nothing is said of how long they took.
_SUSPENDED = 10.0


def probe_all(
    paths: Iterable[str],
    *,
    workers: int,
    timeout: float = 60.0,
    function: Callable[[str], MediaInfo] = probe,
) -> Iterator[MediaInfo]:
    """`probe` of every path, in the order of completion (``info.path`` tells which).

    Args:
        paths: files.
        workers: processes; 0 probes in this process, where a crash is fatal.
        timeout: seconds after which a file is given up as "decoder hung".
        function: what to do with a path; picklable, such as `probe` with other arguments.

    A file that kills its process is reported as "decoder crashed".
    """

    def failed(path: str, reason: str) -> MediaInfo:
        return MediaInfo(path, error=reason, audio_error=reason, video_error=reason)

    for _, info in run_all(function, paths, failed, workers=workers, timeout=timeout):
        yield info


def run_all(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    failed: Callable[[Job, str], Result],
    *,
    workers: int,
    timeout: float = 60.0,
    chunk: int = _CHUNK,
) -> Iterator[tuple[Job, Result]]:
    """Pairs of a job and ``function(job)``, in the order of completion.

    Args:
        function: what to do; picklable.
        jobs: any picklable values.
        failed: gives the result of a job that killed its process ("decoder crashed") or was given up ("decoder hung").
        workers: processes; 0 works in this process, where a crash is fatal.
        timeout: seconds after which a job is given up.
        chunk: jobs that are handed to a process at a time; fewer the longer a job takes.

    Raises:
        OSError: for what is not a job's fault: a full disk, no memory, a disk that cannot be read; a process that was
            killed from outside, as the system does when memory is short.
    """
    if workers < 0:
        raise ValueError(f"workers: must be at least 0, got {workers}")
    if workers == 0:
        for job in jobs:
            yield job, function(job)
        return
    todo = deque(jobs)
    pool = [_Worker(function) for _ in range(min(workers, -(-len(todo) // chunk)))]
    looked = time.monotonic()
    try:
        while todo or any(worker.pending for worker in pool):
            for worker in pool:
                if todo and len(worker.pending) <= chunk // 2:  # before it runs out, so that it never waits
                    worker.give([todo.popleft() for _ in range(min(chunk, len(todo)))])
            ready = wait([worker.connection for worker in pool if worker.pending], timeout=1.0)
            now = time.monotonic()
            if now - looked > _SUSPENDED:  # this process was stopped or busy for so long: it has not watched the others
                for worker in pool:
                    worker.since = now
            looked = now
            for worker in pool:
                if worker.connection in ready:
                    done = worker.take()
                elif worker.hangs(timeout):
                    done = worker.give_up("decoder hung")
                else:
                    continue
                job, reason, result = done
                yield job, failed(job, reason) if reason else result
    finally:
        for worker in pool:
            worker.stop()


def available_cores() -> int:
    """Cores that this process may use: the default number of workers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    """One process, the jobs it still owes (the first is the one in hand), and since when it has had that one."""

    function: Callable[[Any], Any]
    pending: deque[Any] = field(default_factory=deque)
    since: float = 0.0
    process: BaseProcess | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = server()
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, self.function), daemon=True)
        self.process.start()
        far.close()  # ours only: so that the process's death is seen as end of file
        try:
            self.connection.recv()  # "ready": from here on, time counts against a file
        except EOFError as error:
            told = (
                f"a process did not start: {self.function!r} must be importable, not defined in the script that is run"
            )
            raise RuntimeError(told) from error

    def stop(self) -> None:
        self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def give(self, jobs: list[Any]) -> None:
        if not self.pending:
            self.since = time.monotonic()
        self.pending.extend(jobs)
        with suppress(OSError):  # it died between two chunks: reading will notice
            self.connection.send(jobs)

    def take(self) -> tuple[Any, str, Any]:
        """A job, why it failed ("" where it did not), and its result."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError):
            self._raise_if_killed()
            return self.give_up("decoder crashed")
        if isinstance(result, _Stop):
            raise OSError(*result.told)
        self.since = time.monotonic()
        return self.pending.popleft(), "", result

    def _raise_if_killed(self) -> None:
        """A decoder that crashes ends otherwise: whoever killed the process says nothing of the file."""
        assert self.process is not None
        self.process.join(_PATIENCE)
        if self.process.exitcode in FROM_OUTSIDE:
            raise machine_error(
                errno.ENOMEM,
                f"{_name(self.pending[0])}: the process that read it was killed from outside, as the system does when "
                "memory is short: use fewer workers and run the same command again",
            )

    def give_up(self, reason: str) -> tuple[Any, str, None]:
        """Blame the job in hand, and go on with the rest in a new process."""
        job = self.pending.popleft()
        logger.warning("%s: %s", _name(job), reason)
        self.replace()
        return job, reason, None

    def hangs(self, timeout: float) -> bool:
        """Whether the job in hand takes longer than ``timeout``. One whose process a signal has stopped, which says
        nothing of the job, begins anew in another process."""
        took = time.monotonic() - self.since if self.pending else 0.0
        if took < min(timeout, _SUSPICIOUS):
            return False
        assert self.process is not None and self.process.pid is not None
        if is_stopped(self.process.pid):
            logger.warning("%s: a signal stopped the process that reads it: another one does", _name(self.pending[0]))
            self.replace()
            return False
        return took > timeout

    def replace(self) -> None:
        """Goes on with the pending jobs in a new process."""
        self.stop()
        self.start()
        rest = list(self.pending)
        self.pending.clear()
        if rest:
            self.give(rest)


def _keep_freed_memory() -> None:
    """Lets this process keep what the last file took for the next one, unless the user has chosen by a ``MALLOC_``
    variable: glibc by itself gives it back, and the kernel clears it again, page by page, for half of a probe's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_THRESHOLD, _KEPT // 2)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Work on lists of jobs until the other side hangs up."""
    _keep_freed_memory()
    connection.send("ready")
    while True:
        try:
            jobs = connection.recv()
        except (EOFError, OSError):
            return
        for job in jobs:
            try:
                result = function(job)
            except (OSError, MemoryError) as error:
                result = _stop(error, job)
            connection.send(result)


@dataclass(frozen=True)
class _Stop:
    """Arguments of the OSError that ends the whole job."""

    told: tuple[Any, ...]


def _stop(error: OSError | MemoryError, job: Any) -> _Stop:
    """What the other side is to raise; an error that is not the machine's is raised here: a crash of the decoder."""
    try:
        raise_if_machine(error, getattr(error, "filename", None) or _name(job))
    except OSError as machine:
        return _Stop((machine.errno, machine.strerror, machine.filename))
    raise error


def _name(job: Any) -> str:
    return job if isinstance(job, str) else str(getattr(job, "path", job))
