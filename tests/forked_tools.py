"""Tools as users start them, in processes forked from one that has the imports: they take longer than a short run."""

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from wandb.sdk.data_types._private import MEDIA_TMP

import avssl.commands


class ForkedTools:
    """Runs scripts one after the other. Use it as a context manager.

    Args:
        environment: of the process that has the imports: what libraries read as they are loaded.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, script: Path, arguments: list[str], *, environment: Mapping[str, str], cwd: Path, stdin: str = os.devnull
    ) -> subprocess.CompletedProcess[str]:
        """What ``subprocess.run`` of the script returns, with its output as text; it reads the file ``stdin``."""
        (done,) = self._run(script, arguments, [environment], cwd, stdin)
        return done

    def run_ranks(
        self, world: int, script: Path, arguments: list[str], *, environment: Mapping[str, str], cwd: Path
    ) -> list[subprocess.CompletedProcess[str]]:
        """The same of ``world`` processes at once, which find each other as those that Fabric starts."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        ranks = [dict(environment) | meet | {"LOCAL_RANK": str(rank)} for rank in range(world)]
        return self._run(script, arguments, ranks, cwd, os.devnull)

    def _run(
        self, script: Path, arguments: list[str], environments: Sequence[Mapping[str, str]], cwd: Path, stdin: str
    ) -> list[subprocess.CompletedProcess[str]]:
        argv = [str(script), *arguments]
        requests = [
            {"argv": argv, "environment": dict(environment), "cwd": str(cwd), "stdin": stdin}
            for environment in environments
        ]
        server = self._server
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(requests) + "\n")
        server.stdin.flush()
        return [subprocess.CompletedProcess(argv, *each) for each in json.loads(server.stdout.readline())]

    def __enter__(self) -> "ForkedTools":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()


def serve() -> None:
    """Forks processes for each line of requests, which have all that the tools import."""
    for module in pkgutil.iter_modules(avssl.commands.__path__, "avssl.commands."):
        importlib.import_module(module.name)
    for line in sys.stdin:
        started = []
        for request in json.loads(line):
            files = [os.memfd_create(name) for name in ("stdout", "stderr")]
            child = os.fork()
            if not child:
                end(become, request, *files)
            started.append((child, files))
        answers = []
        for child, files in started:
            answer: list[object] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
            for file in files:
                with os.fdopen(file, "rb") as output:
                    output.seek(0)
                    answer.append(output.read().decode(errors="replace"))
            answers.append(answer)
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def end(function: Callable[..., None], *arguments: object) -> NoReturn:
    """Ends this process as ``function`` does, but without taking down what was imported, which takes a second."""
    status: object = 0
    try:
        function(*arguments)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        sys.stderr.write(status + "\n")
    threading._shutdown()  # waits for threads as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def become(request: dict, stdout: int, stderr: int) -> None:
    """Runs the script in this process, which ends as it does."""
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    Path(MEDIA_TMP.name).mkdir(exist_ok=True)  # every process that ends, one after the other, takes it away
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
