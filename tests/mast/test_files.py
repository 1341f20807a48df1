"""A file is on the disk before its name is, and its name before the writer is told so."""

import errno
import os
import re
from pathlib import Path

import pytest

from mast.files import atomic_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the system, in order."""
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        seen.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("rename"), replace(*paths)))
    return seen


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_contents_then_name_then_folder(tmp_path: Path, calls: list[str]) -> None:
    with atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt" and not (tmp_path / "new" / "a.txt").exists()
    assert calls == ["sync file", "rename", "sync folder"]
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == ["whole"]


@pytest.mark.parametrize("point", ["write", "sync", "rename"])
def test_a_failure_at_any_point_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    if point != "write":
        monkeypatch.setattr(os, {"sync": "fsync", "rename": "replace"}[point], fails)
    with pytest.raises(OSError, match="input/output error"), atomic_path(target) as temporary:
        temporary.write_text("new")
        if point == "write":
            fails()
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_file_system_without_folder_sync_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


# A line that writes to a file. What it writes to is named ``temporary`` where `atomic_path` gave it.
WRITES = re.compile(
    r"\bwrite_(text|bytes|table|mp4)\(|\bsavefig\(|\btorch\.save\(|\bsave_file\(|\bwavfile\.write\(|\bsavez\("
    r"|\bParquetWriter\(|\bZipFile\([^)]*\"w|\b(fd)?open\([^)]*\"[wa]b?\"|\bjson\.dump\(|\bcopyfile\("
)
OTHERWISE = {
    "avssl/demo/build.py": "in a folder that gets its name when it is whole, and a journal to append to",
    "avssl/data/journal.py": "a journal, to append to",
    "avssl/evaluation/embeddings.py": "to the open temporary file",
    "avssl/commands/embed.py": "to the temporary path that the caller gives",
    "avssl/evaluation/report.py": "to memory",
    "avssl/evaluation/robustness.py": "to memory",
    "avssl/training/run.py": "to the temporary path in the line after",
    "avssl/tracking/loggers.py": "rows, to append to",
    "mast/hub.py": "two files at once, the second of another name",
}


def test_every_file_that_is_written_appears_whole() -> None:
    root = Path(__file__).parents[2]
    found: dict[str, list[str]] = {}
    for path in sorted(file for folder in ("avssl", "mast", "tools") for file in (root / folder).rglob("*.py")):
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
            if WRITES.search(line) and "temporary" not in line and not line.startswith("def "):
                found.setdefault(path.relative_to(root).as_posix(), []).append(line)
    assert found.keys() == OTHERWISE.keys(), found
