"""Probing many files in processes of their own, so that a decoder that crashes or hangs costs one file."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from avssl.data.media.probe import MediaInfo, probe

logger = logging.getLogger(__name__)

_CHUNK = 32


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
    if workers == 0:
        for path in paths:
            yield function(path)
        return
    todo = deque(paths)
    pool = [_Worker(function) for _ in range(min(workers, -(-len(todo) // _CHUNK)))]
    try:
        while todo or any(worker.pending for worker in pool):
            for worker in pool:
                if not worker.pending and todo:
                    worker.give([todo.popleft() for _ in range(min(_CHUNK, len(todo)))])
            ready = wait([worker.connection for worker in pool if worker.pending], timeout=1.0)
            for worker in pool:
                if worker.connection in ready:
                    yield worker.take()
                elif worker.pending and time.monotonic() - worker.since > timeout:
                    yield worker.give_up("decoder hung")
    finally:
        for worker in pool:
            worker.stop()


@dataclass
class _Worker:
    """One process, the paths it still owes (the first is the one in hand), and since when it has had that one."""

    function: Callable[[str], MediaInfo]
    pending: deque[str] = field(default_factory=deque)
    since: float = 0.0
    process: BaseProcess | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")  # fork would copy the locks of a process with threads
        context.set_forkserver_preload([__name__])  # the imports are paid once, not by every process
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, self.function), daemon=True)
        self.process.start()
        far.close()  # ours only: so that the process's death is seen as end of file
        try:
            self.connection.recv()  # "ready": from here on, time counts against a file
        except EOFError as error:
            message = 'a worker did not start; a script must guard its main part by if __name__ == "__main__"'
            raise RuntimeError(message) from error

    def stop(self) -> None:
        self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def give(self, paths: list[str]) -> None:
        self.pending.extend(paths)
        self.since = time.monotonic()
        with suppress(OSError):  # it died between two chunks: reading will notice
            self.connection.send(paths)

    def take(self) -> MediaInfo:
        try:
            info: MediaInfo = self.connection.recv()
        except (EOFError, OSError):
            return self.give_up("decoder crashed")
        self.pending.popleft()
        self.since = time.monotonic()
        return info

    def give_up(self, reason: str) -> MediaInfo:
        """Blame the file in hand, and go on with the rest in a new process."""
        path = self.pending.popleft()
        logger.warning("%s: %s", path, reason)
        self.stop()
        self.start()
        rest = list(self.pending)
        self.pending.clear()
        if rest:
            self.give(rest)
        return MediaInfo(path, error=reason, audio_error=reason, video_error=reason)


def _serve(connection: Connection, function: Callable[[str], MediaInfo]) -> None:
    """Probe lists of paths until the other side hangs up."""
    connection.send("ready")
    while True:
        try:
            paths = connection.recv()
        except (EOFError, OSError):
            return
        for path in paths:
            connection.send(function(path))
