"""A full disk, too few descriptors, a disk that cannot be read: never a verdict on a file, and the job resumes."""

import builtins
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import pytest
import torch
from loading_samples import wav_manifest, write_ramp_wav
from test_shards_write import clocks, made

import mast
from avssl.checkpoint import read_checkpoint
from avssl.commands import one_line
from avssl.commands.extract_audio import extract_all
from avssl.data.datasets import build_manifest
from avssl.data.media import MediaError, probe, read_audio
from avssl.data.media import write as media_write
from avssl.data.media.pool import run_all
from avssl.data.shards import write
from avssl.data.shards.encode import EncodingResult, Job, write_sample
from avssl.data.shards.index import verify
from avssl.errors import is_of_machine, machine_error
from avssl.evaluation.plots import drawn
from avssl.files import atomic_path


def full(path: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def make_on_a_full_disk(job: Job) -> EncodingResult:
    """`write_sample`, except that a file of the fourth video cannot be written while the disk is full."""
    if Path(job.path).name == "3.mp4" and (Path(job.path).parent / "full").exists():
        raise full(job.part)
    return write_sample(job)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_is_full_for_a_moment_blames_no_file_of_a_cache(tmp_path: Path, monkeypatch, workers: int) -> None:
    manifest = clocks(tmp_path / "media", 5)
    monkeypatch.setattr(write, "write_sample", make_on_a_full_disk)
    (tmp_path / "media" / "full").touch()
    with pytest.raises(OSError, match="No space left") as raised:
        made(manifest, tmp_path / "cache", workers=workers)
    assert f"no space left in {tmp_path / 'cache' / '.parts'}:" in one_line(raised.value)
    (tmp_path / "media" / "full").unlink()
    report = made(manifest, tmp_path / "cache", workers=workers)
    assert report.samples == 5 and not report.failures and not verify(str(tmp_path / "cache"), progress=False)


def test_an_extraction_stops_at_a_full_disk_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    manifest = wav_manifest(tmp_path / "media", 2)
    write_audio = media_write.write_audio

    def fills(path: Path, *args: object) -> int:
        if "001" in path.name:
            raise full()
        return write_audio(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(media_write, "write_audio", fills)
    with pytest.raises(OSError, match="No space left") as raised:
        extract_all(manifest, tmp_path / "sound", workers=0, progress=False)
    assert str(tmp_path / "sound") in one_line(raised.value)
    monkeypatch.setattr(media_write, "write_audio", write_audio)
    summary = extract_all(manifest, tmp_path / "sound", workers=0, progress=False)
    assert (summary.there, summary.extracted, summary.failures) == (1, 1, {})


def test_what_was_written_to_names_the_folder_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as raised, atomic_path(tmp_path / "full" / "a.json"):
        raise full()  # as `file.write` does, without a name
    assert one_line(raised.value).startswith(f"no space left in {tmp_path / 'full'}: free some and run the same")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENFILE])
def test_a_file_that_this_machine_cannot_open_now_is_not_a_broken_file(tmp_path: Path, monkeypatch, code: int) -> None:
    path = write_ramp_wav(tmp_path / "a.wav", 1.0)

    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(av, "open", fails)
    for read in (probe, read_audio):
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            read(str(path))
        assert raised.value.errno == code and raised.value.filename == str(path)


@pytest.mark.parametrize("disk", ["sound", "broken"])
def test_an_end_by_a_disk_error_is_told_from_the_end_of_a_broken_file(tmp_path: Path, monkeypatch, disk: str) -> None:
    """FFmpeg says "Input/output error" of both; the bytes of the second can be read."""
    path = write_ramp_wav(tmp_path / "a.wav", 1.0)
    demux, real_open = av.container.InputContainer.demux, builtins.open

    class Ending:
        def __init__(self, container: av.container.InputContainer) -> None:
            self.container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def __enter__(self) -> "Ending":
            return self

        def __exit__(self, *_: object) -> None:
            self.container.close()

        def demux(self, *streams: object) -> object:
            for number, packet in enumerate(demux(self.container, *streams)):
                if number == 2:
                    raise av.error.classes[errno.EIO](errno.EIO, "Input/output error", str(path))
                yield packet

    opened = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: Ending(opened(*args, **options)))
    if disk == "broken":

        def unreadable(file: object, *args: object, **options: object) -> object:
            if str(file) == str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real_open(file, *args, **options)  # type: ignore[call-overload]

        monkeypatch.setattr(builtins, "open", unreadable)
        with pytest.raises(OSError, match="Input/output error"):
            read_audio(path)
    else:
        try:
            assert read_audio(path).valid < 1
        except MediaError as error:
            assert error.reason  # a verdict on the file


def killed(path: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return path


def test_a_process_that_is_killed_from_outside_says_nothing_of_the_file() -> None:
    with pytest.raises(OSError, match=r"a\.mp4: the process that read it was killed from outside.*memory"):
        list(run_all(killed, ["a.mp4", "b.mp4"], lambda job, reason: reason, workers=1))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM])
def test_what_the_machine_cannot_is_known_from_whatever_it_was_told_as(code: int) -> None:
    plain, told = OSError(code, os.strerror(code)), ValueError("cannot write")
    told.__cause__ = plain
    assert is_of_machine(plain) and is_of_machine(told) and is_of_machine(machine_error(code, "in words"))
    assert str(machine_error(code, "in words")) == one_line(machine_error(code, "in words")) == "in words"


def test_what_a_file_cannot_is_no_error_of_the_machine() -> None:
    for error in (
        FileNotFoundError(errno.ENOENT, "x"),
        PermissionError(errno.EACCES, "x"),
        ValueError("x"),
        OSError("x"),
    ):
        assert not is_of_machine(error)
    no_memory = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    assert is_of_machine(MemoryError()) and is_of_machine(no_memory) and is_of_machine(torch.OutOfMemoryError())


def refusing(real: Callable[..., Any], name: str, code: int) -> Callable[..., Any]:
    """``real``, which the machine refuses for the file or folder of that name."""

    def opened(path: Any, *args: Any, **options: Any) -> Any:
        if Path(os.fspath(path)).name == name:
            raise OSError(code, os.strerror(code), os.fspath(path))
        return real(path, *args, **options)

    return opened


def test_a_folder_that_cannot_be_listed_now_is_not_left_out(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        write_ramp_wav(tmp_path / name / "x.wav", 0.1)
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, "b", errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        build_manifest("folder", tmp_path)


def test_a_shard_that_cannot_be_read_now_is_not_said_to_be_wrong(tmp_path: Path, monkeypatch) -> None:
    """The advice would be to delete it."""
    made(clocks(tmp_path / "media", 2), tmp_path / "cache")
    monkeypatch.setattr(Path, "open", refusing(Path.open, "train-000000.tar", errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        verify(str(tmp_path / "cache"), progress=False)


def test_weights_that_cannot_be_read_now_are_not_damaged(tmp_path: Path, monkeypatch) -> None:
    """A run would go on from an older checkpoint."""
    folder = mast.save_pretrained(mast.create_model("mast_nano"), tmp_path / "encoder")
    torch.save({"settings": {}}, tmp_path / "last.ckpt")
    monkeypatch.setattr(Path, "read_bytes", refusing(Path.read_bytes, "model.safetensors", errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        mast.load_pretrained(folder)
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(type(error)):
            read_checkpoint(tmp_path / "last.ckpt")


def test_a_picture_on_a_full_disk_ends_the_run_that_another_one_does_not(tmp_path: Path) -> None:
    assert drawn(tmp_path / "a.png", "", Mock(side_effect=ValueError("mathtext"))) == []
    with pytest.raises(OSError, match="No space left"):
        drawn(tmp_path / "a.png", "", Mock(side_effect=full()))
