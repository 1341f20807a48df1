"""How decoding processes start: from one server that has the imports, for scans, loaders and the demo set alike."""

import os
import signal
import sys
import threading
import traceback
from multiprocessing import parent_process, spawn
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from avssl import plugins
from avssl.limits import Limits, limits, set_limits
from avssl.urls import hide_credentials, known, learn

# Signals that come from outside, such as the system's when memory is short: a decoder that crashes ends by others.
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
_starting = threading.Lock()


def server() -> ForkServerContext:
    """The context of processes that fork from a server, not from this process, which may hold CUDA, threads and locks.

    They do not import the script that is run: one that does its work without ``if __name__ == "__main__"`` would do it
    again in every process. What they are given must therefore be importable, not defined in the script.

    There is one server for a process, and what it imports is settled when the first of its processes starts: everything
    that a loader's workers need where torch is loaded already, or else, for tools that only look into files, their
    reader alone. Otherwise a scan before a training would leave every worker of every loader to import torch.
    """
    context = _Context()
    context.set_forkserver_preload(["avssl.data.clips" if "torch" in sys.modules else "avssl.data.media.pool"])
    return context


class _Process(ForkServerProcess):
    # What a new process is told of the one that starts it.
    urls: dict[str, str]
    limits: Limits
    plugins: list[str]

    def run(self) -> None:
        end_with_parent()
        learn(self.urls)
        set_limits(self.limits)
        plugins.want(self.plugins, "the process that started this one")
        try:
            super().run()
        except Exception:  # a defect: as multiprocessing tells it, but without the passwords of URLs
            sys.stderr.write(hide_credentials(f"{self.name}: {traceback.format_exc()}"))
            raise SystemExit(1) from None

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        process_obj.urls = known()  # type: ignore[attr-defined]  # told by a pipe, which no other process reads
        process_obj.limits = limits()  # type: ignore[attr-defined]
        process_obj.plugins = plugins.known()  # type: ignore[attr-defined]
        usual = spawn.get_preparation_data

        def without_main(name: str) -> dict[str, Any]:
            return {key: value for key, value in usual(name).items() if not key.startswith("init_main_from_")}

        with _starting:
            spawn.get_preparation_data = without_main  # type: ignore[assignment]
            try:
                return ForkServerProcess._Popen(process_obj)  # type: ignore[attr-defined]
            finally:
                spawn.get_preparation_data = usual


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process, so that it does nothing until another one; False where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def end_with_parent() -> None:
    """Has this process killed when the one that asked the server for it is gone, however that died.

    The server is the parent of this process in the system's eyes, and lives as long as this process does. What tells
    of the other's death is a pipe whose far end it alone holds. Linux kills upon its end by itself, also a process that
    is stopped or keeps the interpreter's lock; elsewhere a thread waits for it.
    """
    parent = parent_process()
    assert parent is not None
    gone: int = parent.sentinel
    if sys.platform != "linux":
        threading.Thread(target=_exit_after, args=(gone,), name="parent watch", daemon=True).start()
        return
    import fcntl

    fcntl.fcntl(gone, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(gone, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(gone, fcntl.F_SETFL, fcntl.fcntl(gone, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([gone], timeout=0):  # it died before that
        os._exit(1)


def _exit_after(gone: int) -> None:
    wait([gone])
    os._exit(1)


class _Context(ForkServerContext):
    Process = _Process  # type: ignore[assignment]
