"""Compiles a C++ source of this folder on first use, keeps the library in the user's cache, and loads it.

A source is plain C++17 with ``extern "C"`` functions that take pointers and sizes. It knows nothing of torch, so it
compiles in a second or two with any compiler that is there, and ``ctypes`` calls it without Python's lock. OpenMP is
on; the symbols resolve to the runtime that torch has loaded, so both share one pool of threads.

A library ends with the SHA-256 of what is before it, which the loader of the system skips: one that was cut short would
end the process, and one that is not this user's alone could do anything. Either is built anew instead.

Without a compiler, or where a build fails, :func:`load` returns None and says so once in the log: callers must have
another way. ``MAST_NATIVE=0`` turns all kernels off, ``MAST_NATIVE_CACHE`` names another folder for the libraries, and
``CXX`` another compiler.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from mast.files import atomic_path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
# No contraction: a product and a sum round each on its own, as torch's operators do.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 120.0

_lock = threading.Lock()
# Libraries of this process by name and flags; None where there is none.
loaded: dict[tuple[str, ...], ctypes.CDLL | None] = {}


class BuildError(RuntimeError):
    """No library could be made; the message says why."""


def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """The library of ``mast/fast/cpu/NAME.cpp``, built if it is not in the cache.

    Args:
        name: stem of the source.
        flags: compiler flags beyond :data:`FLAGS`, whose later ones win.

    Returns:
        None where kernels are turned off, there is no compiler, or the build fails. The answer holds for the process.

    Raises:
        FileNotFoundError: there is no such source.
    """
    if os.environ.get("MAST_NATIVE", "1").lower() in ("0", "off", "false", "no"):
        return None
    key = (name, *flags)
    if key not in loaded:  # without the lock: a finished entry never changes
        with _lock:
            if key not in loaded:
                loaded[key] = _load(name, flags)
    return loaded[key]


def _load(name: str, flags: tuple[str, ...]) -> ctypes.CDLL | None:
    source = SOURCES / f"{name}.cpp"
    if not source.is_file():
        raise FileNotFoundError(f"mast.fast.cpu: no kernel {name!r}, there is no {source}")
    try:
        command = compile_command(flags)
        library = _cache_folder() / f"{name}-{cache_key(source, command)}.so"
        if os.path.lexists(library):
            try:
                _check(library)
                return ctypes.CDLL(str(library))
            except (BuildError, OSError) as error:  # OSError: a home folder shared with a machine of another C library
                logger.info("%s is not used (%s); building it anew", library, error)
        build(source, library, command)
        _check(library)
        return ctypes.CDLL(str(library))
    except (BuildError, OSError) as error:
        logger.warning("mast runs without its %s kernel, more slowly: %s", name, error)
        return None


def build(source: Path, library: Path, command: list[str]) -> None:
    """Compile ``source`` with ``command``; ``library`` appears whole or not at all, also when several do it at once.

    Raises:
        BuildError: the compiler failed, with the first lines of what it said.
        OSError: the folder cannot be written.
    """
    with atomic_path(library) as temporary:
        logger.info("compiling %s for this processor", source.name)
        command = [*command, str(source), "-o", str(temporary)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{command[0]} took longer than {_TIMEOUT_S:g} s on {source.name}") from error
        if done.returncode != 0:
            said = " ".join(done.stderr.strip().splitlines()[:3])
            raise BuildError(f"{shlex.join(command[:1])} failed on {source.name} with code {done.returncode}: {said}")
        digest = hashlib.sha256(temporary.read_bytes()).digest()
        with temporary.open("ab") as file:
            file.write(digest)
        os.chmod(temporary, 0o700)


def _check(library: Path) -> None:
    """Refuses a library that is not as it was built, or that another user may have put there.

    Raises:
        BuildError: saying which.
    """
    status = os.lstat(library)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.getuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise BuildError("it is not this user's alone")
    data = library.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(data[:-size]).digest() != data[-size:]:
        raise BuildError("it is not as it was built")


def compile_command(flags: tuple[str, ...]) -> list[str]:
    """Compiler and flags, without the files.

    Raises:
        BuildError: no compiler, or another system than Linux.
    """
    if not sys.platform.startswith("linux"):
        raise BuildError(f"kernels are built on Linux only, this is {sys.platform}")
    chosen = shlex.split(os.environ.get("CXX", ""))
    found = [path for path in map(shutil.which, chosen[:1] or _COMPILERS) if path]
    if not found:
        raise BuildError(f"no C++ compiler, tried {', '.join(chosen[:1] or _COMPILERS)}; install g++ or set CXX")
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return [found[0], *chosen[1:], native, *FLAGS, *flags]


def cache_key(source: Path, command: list[str]) -> str:
    """What a library depends on: its source and its headers, the command, and the processor it was made for."""
    digest = hashlib.sha256()
    for file in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(file.read_bytes() + b"\0")
    digest.update("\0".join([*command, platform.machine(), _processor()]).encode())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """Model and instruction sets of the first processor."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(2**14).split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first if line.startswith(("model name", "flags", "Features", "CPU part")))


def _cache_folder() -> Path:
    """A folder that only this user can write to: code from it is run."""
    chosen = os.environ.get("MAST_NATIVE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = Path(chosen) if chosen else base / "mast" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            reason = "it cannot be written"
        else:
            reason = "others can write to it"
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        reason = str(error)
    logger.info("compiled kernels are not kept in %s: %s", folder, reason)
    private = Path(tempfile.mkdtemp(prefix="mast-native-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private
