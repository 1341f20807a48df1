"""Checkpoint files of a run: written atomically, checked byte by byte, loaded without executing code.

torch writes them as zip archives with the CRC-32 of every part, which it does not compare on loading: here
:func:`verify` does. A run whose ``last.ckpt`` is damaged goes on from the newest whole one.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
import yaml

from avssl.errors import is_of_machine, machine_error
from avssl.files import DamagedError, has_seal, is_sealed
from avssl.plugins import want
from mast.files import move_into_place

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # takes seconds to import, which who only reads a checkpoint need not wait for


logger = logging.getLogger(__name__)

# The previous one is the last one's predecessor, a second chance where a disk damages that.
LAST, BEST, PREVIOUS = "last.ckpt", "best.ckpt", "previous.ckpt"
CONFIG = "config.yaml"
# What torch's writer of archives, whose failed writes are RuntimeErrors without a number, says.
_FAILED_WRITE = ("PytorchStreamWriter", "inline_container")
_SPARE = re.compile(rf"step-\d+\.ckpt|{BEST}|{PREVIOUS}")


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    Args:
        fabric: Launched Fabric; every process calls every method.
        folder: Created with the first checkpoint where it is missing.
    """

    def __init__(self, fabric: Fabric, folder: Path) -> None:
        self.fabric, self.folder = fabric, folder
        self._whole: Path | None = None  # verified already
        self._last_is_damaged = False

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Writes ``state`` to ``name``: a reader sees the old file or the whole new one. The old ``last.ckpt`` stays as
        ``previous.ckpt``.

        Raises:
            OSError: when the folder cannot be written to or its disk is full; the old file is then intact.
            RuntimeError: of a collective operation, when another process is gone; the old file is intact, too.
        """
        path, partial = self.folder / name, self.folder / f".{name}.partial"
        try:
            if self.fabric.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.fabric.save(partial, state)
            if self.fabric.is_global_zero:
                if name == LAST and not self._last_is_damaged:
                    self._keep_previous()
                move_into_place(partial, path)
                self._last_is_damaged &= name != LAST
        except (OSError, RuntimeError) as error:
            if self.fabric.is_global_zero:
                partial.unlink(missing_ok=True)
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _FAILED_WRITE):
                raise
            number = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(number) if number else str(error).split("\n")[0]
            way_out = "free some space and run" if number in (errno.ENOSPC, errno.EDQUOT) else "mend that and run"
            told = f"cannot write checkpoint {path}: {reason}; {way_out} with --resume auto"
            raise machine_error(number or errno.EIO, told) from error  # torch's own errors have no number
        self.fabric.barrier()
        self._whole = None
        return path

    def _keep_previous(self) -> None:
        """Gives ``last.ckpt`` a second name, so that there is a last one at any time."""
        previous = self.folder / PREVIOUS
        previous.unlink(missing_ok=True)
        try:
            os.link(self.folder / LAST, previous)
        except FileNotFoundError:  # the first one
            pass
        except OSError as error:  # a file system without links
            logger.debug("%s is not kept: %s", previous, error)

    def check(self, path: Path) -> None:
        """:func:`verify` of a file that is to be loaded next, which then does not do it again."""
        verify(path)
        self._whole = path

    def load(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Restores the objects in ``state`` from ``path`` and returns all other values of the file.

        Raises:
            ValueError: when the file is damaged, or no checkpoint of this kind of run.
        """
        if path != self._whole:
            verify(path)
        try:
            return self.fabric.load(path, state, strict=True, weights_only=True)
        except (KeyError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{path} does not fit this run ({_first_line(error)}); use --resume none to start over"
            ) from error

    def latest(self, resume: str) -> Path | None:
        """The file that ``--resume`` means: auto, none or a path. Every process calls it; one reads.

        auto means ``last.ckpt``. Where that is missing or damaged, it is the newest whole one of the others that the
        run wrote, which is said.

        Raises:
            FileNotFoundError: there is no file at the path.
            ValueError: what there is is damaged.
        """
        if resume == "none":
            return None
        if resume != "auto" and not Path(resume).is_file():
            raise FileNotFoundError(f"resume: there is no file {resume}")
        path: Path | None = None if resume == "auto" else Path(resume)
        wrong: Exception | None = None
        if self.fabric.is_global_zero:
            try:
                if path is None:
                    path = self._newest_whole()
                else:
                    verify(path)
            except (ValueError, OSError) as error:  # of which the others, who wait, must know
                wrong = error
        path, wrong = self.fabric.broadcast((path, wrong))
        if wrong is not None:
            raise wrong
        self._whole = path
        return path

    def _newest_whole(self) -> Path | None:
        last = self.folder / LAST
        wrong = []
        if last.is_file():
            try:
                verify(last)
                return last
            except ValueError as error:
                wrong.append(str(error))
                self._last_is_damaged = True
        spare = [path for path in self.folder.glob("*.ckpt") if _SPARE.fullmatch(path.name)]
        steps: dict[Path, int] = {}
        for path in spare:
            try:
                steps[path] = int(read_head(path)["progress"]["step"])
            except ValueError as error:
                wrong.append(str(error))
            except (KeyError, TypeError):
                wrong.append(f"{path} is of no run")
        for path in sorted(steps, key=lambda path: steps[path], reverse=True):
            try:
                verify(path)
            except ValueError as error:
                wrong.append(str(error))
                continue
            why = "; ".join(wrong) or f"there is no {last}"
            logger.warning("%s: going on from %s, the newest whole one, of step %d", why, path, steps[path])
            return path
        if wrong:
            raise ValueError(
                f"{'; '.join(wrong)}; no other checkpoint of the run is whole: copy one back, or give --resume none to "
                "start over (the old folder is kept)"
            )
        return None


def is_sharded(fabric: Fabric) -> bool:
    """Whether parameters are sharded over processes (FSDP2): optimizer states are then laid out differently."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def verify(path: Path) -> None:
    """Compares every byte of the checkpoint at ``path`` with the checksums in it.

    Raises:
        ValueError: it is damaged, or no checkpoint.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        _compare(path, file)


def read_head(path: Path) -> dict[str, Any]:
    """The values of the checkpoint at ``path`` that are no tensors, without reading the weights.

    Raises:
        ValueError: when it is damaged, or not one.
    """
    with _archive(path) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                archive.read(name)  # compares its checksum
    state = _load(path, path, mmap=True)
    return {name: state[name] for name in ("settings", "progress", "wandb_id", "sharded") if name in state}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All values of the checkpoint at ``path``, on the CPU, once every byte was compared with its checksum.

    They are of the file that was compared, also where a training puts another one in its place meanwhile.

    Raises:
        ValueError: when it is damaged or not one, or holds anything but tensors and plain values.
    """
    with open(path, "rb") as file:
        _compare(path, file)
        file.seek(0)
        return _load(path, file, mmap=False)


def _compare(path: Path, file: IO[bytes]) -> None:
    with _archive(path, file) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise zipfile.BadZipFile(f"the checksum of {bad} differs")


@contextmanager
def _archive(path: Path, file: IO[bytes] | None = None) -> Iterator[zipfile.ZipFile]:
    """The zip archive that a checkpoint is; what is wrong with it is told in one line."""
    try:
        with zipfile.ZipFile(file or path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile("it is compressed, as torch never does")
            yield archive
    except Exception as error:  # zipfile fails on damaged offsets with any of Python's errors
        if is_of_machine(error) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise ValueError(f"{path} is not a checkpoint of avssl, or is damaged: {_first_line(error)}") from error


def _load(path: Path, file: Path | IO[bytes], mmap: bool) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other pickles
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # the unpickler fails on other bytes with any of Python's errors
        if is_of_machine(error):
            raise
        raise ValueError(f"{path} is not a checkpoint of avssl: {_first_line(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise ValueError(f"{path} is not a checkpoint of avssl: it has no settings")
    config = state["settings"].get("config")
    if isinstance(config, dict):
        want(config.get("imports") or (), str(path))
    return state


def run_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in ``folder``: of its ``config.yaml``, or where that is missing or damaged, those that
    its checkpoints keep, which is said. Empty where there are none.

    Raises:
        DamagedError: the file is not as the run wrote it, and no checkpoint has the settings.
    """
    file, values, changed = folder / CONFIG, None, False
    try:
        text = file.read_text(encoding="utf-8")
        values, changed = yaml.safe_load(text), not is_sealed(text)
        why = "is not as the run wrote it, its checksum differs" if changed else "is empty"
    except (FileNotFoundError, NotADirectoryError):
        why = "is missing"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = f"is damaged ({_first_line(error)})"
    if isinstance(values, dict) and values and not changed:
        want(values.get("imports") or (), str(file))
        return values
    own = "; to have a change by hand count, take its last line out" if changed else ""
    for path in (folder / "checkpoints" / name for name in (LAST, PREVIOUS, BEST)):
        try:
            values = read_head(path)["settings"].get("config")
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        if isinstance(values, dict):
            logger.warning("%s %s: taking the settings from %s%s", file, why, path, own)
            return values
    if changed:
        raise DamagedError(f"{file} {why}: put it back{own}")
    return {}


def edited_by_hand(folder: Path) -> bool:
    """Whether somebody took the checksum out of a run's ``config.yaml``, to have changes of his own count."""
    try:
        return not has_seal((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Building a model from the settings and weights of ``path``; what they lack is told in one line.

    Raises:
        ValueError: they do not fit each other or this version.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the second names the weights
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(lines[:2])[:300]
        raise ValueError(f"checkpoint: settings and weights of {path} do not fit a model: {what}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
