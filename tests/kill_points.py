"""Kills a piece of work before each of its operations on files, one after the other, in processes forked for it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


def kills(work: Callable[[], object], folder: Path, every: int = 1, terms: bool = True) -> Iterator[str]:
    """Does ``work`` in a process that dies at its first operation on a file under ``folder``, then in one that dies at
    its second (with ``every`` 4 at its fifth), and so on, until one comes to its end; after each death it gives where
    that was. Each finds what the one before left.

    By turns they die by SIGKILL and, with ``terms``, by SIGTERM; a file that is opened to be written is, by turns, not
    there or empty.
    """
    number = 0
    while True:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _work(work, folder, number, writer, _signal_of(number, terms))
        os.close(writer)
        with os.fdopen(reader) as pipe:
            told = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not code:
            return
        assert code == -_signal_of(number, terms), f"after {number} operations it failed by itself: {code}"
        yield told
        number += every


def _signal_of(number: int, terms: bool) -> int:
    return signal.SIGTERM if terms and number // 2 % 2 else signal.SIGKILL


def _work(work: Callable[[], object], folder: Path, number: int, pipe: int, by: int) -> NoReturn:
    left = number
    root = os.fspath(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        if not (writes or event in _CHANGING) or not os.fspath(_path(arguments)).startswith(root):
            return
        if left == 0:
            if writes and number % 2 and arguments[2] & os.O_TRUNC:
                left = -1
                os.close(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.write(pipe, f"{event} {arguments}".encode())
            os.kill(os.getpid(), by)
        left -= 1

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.addaudithook(hook)
    try:
        work()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def _path(arguments: tuple[Any, ...]) -> str:
    path = arguments[0]
    return "" if isinstance(path, int) or path is None else os.fsdecode(path)
