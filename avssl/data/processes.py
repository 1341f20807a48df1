"""How decoding processes start: from one server that has the imports, for scans, loaders and the demo set alike."""

import sys
import threading
from multiprocessing import spawn
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any

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
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        usual = spawn.get_preparation_data

        def without_main(name: str) -> dict[str, Any]:
            return {key: value for key, value in usual(name).items() if not key.startswith("init_main_from_")}

        with _starting:
            spawn.get_preparation_data = without_main  # type: ignore[assignment]
            try:
                return ForkServerProcess._Popen(process_obj)  # type: ignore[attr-defined]
            finally:
                spawn.get_preparation_data = usual


class _Context(ForkServerContext):
    Process = _Process  # type: ignore[assignment]
