"""How decoding processes start: from one server that has the imports, for scans and loaders alike."""

import multiprocessing
import sys
from multiprocessing.context import ForkServerContext


def server() -> ForkServerContext:
    """The context of processes that fork from a server, not from this process, which may hold CUDA, threads and locks.

    There is one server for a process, and what it imports is settled when the first of its processes starts: everything
    that a loader's workers need where torch is loaded already, or else, for tools that only look into files, their
    reader alone. Otherwise a scan before a training would leave every worker of every loader to import torch.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["avssl.data.clips" if "torch" in sys.modules else "avssl.data.media.pool"])
    return context
