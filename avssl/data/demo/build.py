"""Make the demo set on disk: in a temporary folder, by several processes, then renamed into place as a whole."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import scipy

from avssl.data.demo.clip import CLASSES, make_clip
from avssl.data.demo.writer import write_mp4
from avssl.data.processes import server
from avssl.errors import is_of_machine
from avssl.evaluation.files import atomic_path, seal, unseal
from avssl.locks import hold
from avssl.progress import Meter

logger = logging.getLogger(__name__)

VERSION = 2  # raise it whenever the clips change
MARKER = "demo.json"
TRUTH = "truth.json"
HEAD = "event"
STALE_SECONDS = 3600
IN_PROCESS = 60  # so few clips are done before a worker process has started


class DemoError(OSError):
    """The demo set cannot be made or read; the message names the folder and the fix."""


@dataclass(frozen=True)
class Recipe:
    """What determines the demo set: the same recipe and library versions give the same bytes."""

    seed: int
    pretrain: int
    train_per_class: int
    test_per_class: int
    version: int = VERSION

    @property
    def key(self) -> str:
        """Short name of the recipe, for a folder in the cache."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def clips(self) -> list[tuple[str, int]]:
        """(split, index) of every clip."""
        counts = {
            "pretrain": self.pretrain,
            "train": self.train_per_class * len(CLASSES),
            "test": self.test_per_class * len(CLASSES),
        }
        return [(split, index) for split, count in counts.items() for index in range(count)]


def ensure_demo(
    root: Path | None = None,
    *,
    seed: int = 0,
    pretrain: int = 800,
    train_per_class: int = 24,
    test_per_class: int = 12,
    workers: int = 2,
) -> Path:
    """The folder of the demo set, made now if it is not there yet or is damaged.

    Args:
        root: folder of the set; by default ``demo-<key>`` in ``$AVSSL_CACHE`` or ``~/.cache/avssl``.
        seed, pretrain, train_per_class, test_per_class, workers: as for `build_demo`.
    """
    recipe = Recipe(seed, pretrain, train_per_class, test_per_class)
    if root is None:
        cache = os.environ.get("AVSSL_CACHE") or Path.home() / ".cache" / "avssl"
        root = Path(cache).expanduser() / f"demo-{recipe.key}"
    root = Path(root)
    if is_complete(root, recipe):
        return root
    return _build(root, recipe, workers, anew=False)


def build_demo(
    root: Path,
    *,
    seed: int = 0,
    pretrain: int = 800,
    train_per_class: int = 24,
    test_per_class: int = 12,
    workers: int = 2,
) -> Path:
    """Make the demo set anew in ``root``, replacing a demo set that is there; returns ``root``.

    Args:
        root: folder of the set. It appears whole or not at all; of several builders one works, the others wait.
        seed: another seed gives other clips of the same kinds.
        pretrain: clips without labels.
        train_per_class, test_per_class: labelled clips of each of the `CLASSES`.
        workers: processes; 0 or 1 makes all clips in this one.

    Raises:
        DemoError: the folder cannot be written, the disk is full, or ``root`` holds something else.
    """
    return _build(Path(root), Recipe(seed, pretrain, train_per_class, test_per_class), workers)


def is_complete(root: Path, recipe: Recipe | None = None) -> bool:
    """True if ``root`` holds a finished set (of this recipe) whose files all have their recorded size.

    Raises:
        OSError: the machine cannot say, for want of memory or open files.
    """
    try:
        marker = _marker(root)
        if recipe is not None and marker["recipe"] != asdict(recipe):
            return False
        return all((root / row["path"]).stat().st_size == row["bytes"] for row in marker["clips"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_of_machine(error):
            raise
        return False


def _marker(root: Path) -> dict[str, Any]:
    return unseal((root / MARKER).read_bytes(), root / MARKER, "make the demo set again")


def demo_rows(root: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Manifest rows (clip_id, path, split, and ``label.event`` where labelled) and the heads of a finished set."""
    if not is_complete(Path(root)):
        raise DemoError(errno.ENOENT, f"no complete demo set in {root}: call ensure_demo or build_demo first")
    marker = _marker(Path(root))
    rows = [{key: value for key, value in row.items() if key != "bytes"} for row in marker["clips"]]
    return rows, {HEAD: list(CLASSES)}


def _build(root: Path, recipe: Recipe, workers: int, anew: bool = True) -> Path:
    _refuse_foreign(root)
    with _explained(root), hold(root, "demo set", wait=True):
        if not anew and is_complete(root, recipe):  # another process has just made it
            return root
        _remove_stale(root)
        folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=".partial", dir=root.parent))
        try:
            _fill(folder, recipe, workers)
            folder.chmod(0o755)  # mkdtemp makes private folders; a cache may be shared
            _put_in_place(folder, root, recipe)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return root


def _fill(folder: Path, recipe: Recipe, workers: int) -> None:
    clips = recipe.clips()
    for split in dict(clips):
        (folder / split).mkdir()
    jobs = [(str(folder), recipe.seed, split, index) for split, index in clips]
    rows, truth = [], {}
    start = time.perf_counter()
    with Meter("making the demo set", total=len(jobs), unit="clip") as meter:
        for row, facts in _results(jobs, workers):
            rows.append(row)
            truth[row["clip_id"]] = facts
            meter.update()
    logger.info("made %d demo clips in %.1f s", len(jobs), time.perf_counter() - start)
    (folder / TRUTH).write_text(json.dumps(truth))
    versions = {"av": av.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    marker = {"recipe": asdict(recipe), "versions": versions, "classes": CLASSES, "clips": rows}
    with atomic_path(folder / MARKER) as temporary:
        temporary.write_text(json.dumps(seal(marker)))


def _results(jobs: list[tuple[str, int, str, int]], workers: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    if workers <= 1 or len(jobs) <= IN_PROCESS:
        yield from map(_make, jobs)
        return
    pool = ProcessPoolExecutor(workers, mp_context=server())
    try:
        yield from pool.map(_make, jobs, chunksize=8)
    except BrokenProcessPool as error:
        raise DemoError(
            errno.ECHILD,
            "a worker process of the demo builder died: the machine may be out of memory; pass workers=0 to make the "
            "clips in this process",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make(job: tuple[str, int, str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make and write one clip: (manifest row with its size in bytes, truth). Pretraining clips get no label."""
    folder, seed, split, index = job
    clip = make_clip(seed, split, index)
    clip_id = f"{split}-{index:04d}"
    path = Path(split) / f"{index:04d}.mp4"
    write_mp4(Path(folder) / path, clip.frames, clip.audio)
    row = {"clip_id": clip_id, "path": path.as_posix(), "split": split, "bytes": (Path(folder) / path).stat().st_size}
    facts = {**asdict(clip.style), "onsets": np.round(clip.onsets, 5).tolist(), "body": np.round(clip.box, 2).tolist()}
    if split != "pretrain":
        row[f"label.{HEAD}"] = clip.event
    return row, facts


def _put_in_place(folder: Path, root: Path, recipe: Recipe) -> None:
    """Rename ``folder`` to ``root``; an older set is moved aside first, a finished one of a rival builder is kept."""
    aside = folder.with_suffix(".old.partial")
    with contextlib.suppress(FileNotFoundError):
        root.rename(aside)
    try:
        folder.rename(root)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not is_complete(root, recipe):
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign(root: Path) -> None:
    """Only a demo set, whole or broken, or an empty folder is ever replaced."""
    known = {MARKER, TRUTH, "pretrain", "train", "test"}
    try:
        found = {entry.name for entry in root.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise DemoError(error.errno, f"cannot use {root} for the demo set: {error.strerror}; check the path") from error
    if not found <= known:
        raise DemoError(errno.EEXIST, f"{root} holds other files ({min(found - known)}, ...): name an empty folder")


def _remove_stale(root: Path) -> None:
    """Drop what builders that were killed left behind."""
    for folder in root.parent.glob(f".{root.name}-*.partial"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn the system's errors into one line that names the folder and the fix."""
    try:
        yield
    except DemoError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason, fix = "the disk is full", "free 50 MB"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason, fix = "the folder is read-only", "make it writable"
        else:
            reason, fix = error.strerror or str(error), "check the path"
        message = f"cannot make the demo set in {root}: {reason}; {fix}, or name another folder in AVSSL_CACHE"
        raise DemoError(error.errno, message) from error
