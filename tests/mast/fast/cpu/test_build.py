"""Kernels are built once, by whoever comes first, and their absence stops nothing."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mast
from mast.fast.cpu import build

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="needs a C++ compiler on Linux",
)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one kernel, an empty cache beside it, and nothing loaded yet."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "seven.cpp").write_text('#include "number.h"\nextern "C" int number() { return kNumber; }\n')
    (folder / "number.h").write_text("constexpr int kNumber = 7;\n")
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setenv("MAST_NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    start_anew(monkeypatch)
    return folder


def start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "loaded", {})


def libraries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_built_once_and_kept(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.load("seven").number() == 7
    (library,) = libraries(tmp_path)
    assert library.stat().st_mode & 0o077 == 0
    start_anew(monkeypatch)
    monkeypatch.setattr(build, "build", None)  # what is in the cache is not built again
    assert build.load("seven").number() == 7
    assert build.load("seven") is build.load("seven")


def test_a_change_of_source_header_or_flags_builds_another(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load("seven")
    (sources / "number.h").write_text("constexpr int kNumber = 8;\n")
    start_anew(monkeypatch)
    assert build.load("seven").number() == 8
    assert build.load("seven", "-DUNUSED").number() == 8
    assert len(libraries(tmp_path)) == 3


def test_a_broken_library_in_the_cache_is_replaced(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "cache" / f"seven-{build.cache_key(sources / 'seven.cpp', build.compile_command(()))}.so"
    library.parent.mkdir(mode=0o700)
    library.write_bytes(b"cut short")
    assert build.load("seven").number() == 7
    assert libraries(tmp_path) == [library]


@pytest.mark.parametrize("how", ["cut short", "one bit", "no checksum", "shared", "link", "broken link"])
def test_a_library_that_is_not_as_it_was_built_is_never_loaded(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The system's loader would end the process with SIGBUS, or run what another user wrote."""
    build.load("seven")
    (library,) = libraries(tmp_path)
    whole = library.read_bytes()
    library.unlink()  # which is loaded, in this process
    if how == "cut short":
        library.write_bytes(whole[: len(whole) // 2])
    elif how == "one bit":
        library.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    elif how == "no checksum":
        library.write_bytes(whole[:-32])
    elif how == "shared":
        library.write_bytes(whole)
        library.chmod(0o720)
    elif how == "link":
        (tmp_path / "theirs.so").write_bytes(whole)
        library.symlink_to(tmp_path / "theirs.so")
    else:
        library.symlink_to(tmp_path / "nothing")
    loaded, load = [], ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: (loaded.append(Path(path).read_bytes()), load(path))[1])
    start_anew(monkeypatch)
    assert build.load("seven").number() == 7
    assert len(loaded) == 1 and loaded[0][-32:] == hashlib.sha256(loaded[0][:-32]).digest()
    assert libraries(tmp_path) == [library] and not library.is_symlink() and library.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_library_of_another_user_is_refused(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build.load("seven")
    (library,) = libraries(tmp_path)
    os.chown(library, 65534, -1)
    start_anew(monkeypatch)
    caplog.set_level(logging.INFO, "mast.fast.cpu.build")
    assert build.load("seven").number() == 7
    assert "it is not this user's alone" in caplog.text and library.stat().st_uid == 0


def test_a_folder_that_others_can_write_to_is_not_used(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert build.load("seven").number() == 7
    assert not libraries(tmp_path)


def test_a_failed_build_is_said_once_and_leaves_nothing(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sources / "broken.cpp").write_text("int number( { }\n")
    with caplog.at_level(logging.WARNING, "mast.fast.cpu.build"):
        assert build.load("broken") is None and build.load("broken") is None
    (record,) = caplog.records
    assert "without its broken kernel" in record.message and "error" in record.message
    assert not libraries(tmp_path)


def test_without_a_compiler_the_frontend_works_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frontend, waveform = mast.LogMel(), torch.randn(2, 4000)
    expected = frontend(waveform)
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("MAST_NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    start_anew(monkeypatch)
    with caplog.at_level(logging.WARNING, "mast.fast.cpu.build"):
        torch.testing.assert_close(frontend(waveform), expected, atol=1e-5, rtol=0)
        frontend(waveform)
    assert ["no C++ compiler" in record.message for record in caplog.records] == [True]


def test_turned_off_by_the_environment(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAST_NATIVE", "0")
    assert build.load("seven") is None
    monkeypatch.setenv("MAST_NATIVE", "1")
    assert build.load("seven").number() == 7


def test_openmp_is_the_one_that_torch_has_loaded(sources: Path) -> None:
    """Another runtime would have threads of its own, which wait actively beside torch's."""
    torchs = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if not torchs:
        pytest.skip("this torch does not bring its OpenMP")
    text = '#include <omp.h>\nextern "C" void* runtime() { return (void*)&omp_get_max_threads; }\n'
    (sources / "runtime.cpp").write_text(text)
    runtime = build.load("runtime").runtime
    runtime.restype = ctypes.c_void_p
    assert runtime() == ctypes.cast(ctypes.CDLL(str(torchs[0])).omp_get_max_threads, ctypes.c_void_p).value


def test_an_unknown_kernel_is_an_error(sources: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no kernel 'eight'"):
        build.load("eight")


def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        "library = runpy.run_path(sys.argv[1])['load']('frontend')\n"
        "sys.exit(0 if library is not None and library.mast_batch() > 0 else 1)\n"
    )
    environment = {**os.environ, "MAST_NATIVE_CACHE": str(tmp_path / "cache"), "MAST_NATIVE": "1"}
    command = [sys.executable, "-c", script, build.__file__]
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(libraries(tmp_path)) == 1
