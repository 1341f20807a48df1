"""Make a procedural set on disk: in a temporary folder, by several processes, then renamed into place as a whole.

What a set consists of is its `Recipe`. A build that was stopped goes on with the clips that it had made.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import av
import numpy as np
import scipy

from avssl.data.boxes import BOX
from avssl.data.media.write import write_mp4
from avssl.data.processes import server
from avssl.demo.sounds import FPS, SAMPLE_RATE
from avssl.errors import is_of_machine
from avssl.files import atomic_path, seal, unseal
from avssl.locks import hold
from avssl.progress import Meter

logger = logging.getLogger(__name__)

TRUTH = "truth.json"
JOURNAL = "clips.jsonl"  # of a build that is not finished: what it is of, then a line a clip
IN_PROCESS = 60  # so few clips are done before a worker process has started


class DemoError(OSError):
    """A procedural set cannot be made or read; the message names the folder and the fix."""


@dataclass(frozen=True)
class RenderedClip:
    """A clip as it is drawn.

    Attributes:
        frames: (T, H, W, 3) uint8.
        audio: (S,) float32 in -1..1.
        columns: what the manifest says of it beside its name, path and split.
        truth: what is known of it besides, for ``truth.json``.
    """

    frames: np.ndarray
    audio: np.ndarray
    columns: dict[str, Any]
    truth: dict[str, Any]


class Recipe(ABC):
    """What determines a procedural set: the same recipe and library versions give the same bytes.

    Subclasses are frozen dataclasses, whose fields are all that counts, with ``version`` among them.
    """

    name: ClassVar[str]
    standing: ClassVar[int | None] = None
    """Side of the square pictures in pixels, where the truth's "body" (x, y, size) holds in all frames of a clip."""

    @property
    @abstractmethod
    def heads(self) -> dict[str, list[str]]:
        """Class names by label head."""

    @abstractmethod
    def clips(self) -> list[tuple[str, int]]:
        """(split, index) of every clip."""

    @abstractmethod
    def make(self, split: str, index: int) -> RenderedClip:
        """Draws one clip."""

    @property
    def values(self) -> dict[str, Any]:
        """The fields, as JSON holds them."""
        return asdict(cast(Any, self))

    @property
    def key(self) -> str:
        """Short name of the recipe, for a folder in the cache."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def marker(self) -> str:
        """The file that a finished set has."""
        return f"{self.name}.json"

    @classmethod
    def of(cls, root: Path) -> Self:
        """The recipe of the finished set in ``root``.

        Raises:
            DemoError: there is none.
        """
        recipe = None
        try:
            recipe = cls(**_read_marker(root, cls.name)["recipe"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_of_machine(error):
                raise
        if recipe is None or not is_complete(root, recipe):
            raise DemoError(errno.ENOENT, f"no complete {cls.name} set in {root}: make it first")
        return recipe


def ensure_set(recipe: Recipe, root: Path | None = None, *, workers: int = 2) -> Path:
    """The folder of the set, made now if it is not there yet or is damaged.

    Args:
        recipe: what is made.
        root: folder of the set; by default ``NAME-<key>`` in ``$AVSSL_CACHE`` or ``~/.cache/avssl``.
        workers: as for `build_set`.
    """
    if root is None:
        cache = os.environ.get("AVSSL_CACHE") or Path.home() / ".cache" / "avssl"
        root = Path(cache).expanduser() / f"{recipe.name}-{recipe.key}"
    root = Path(root)
    if is_complete(root, recipe):
        return root
    return build_set(recipe, root, workers=workers, anew=False)


def build_set(recipe: Recipe, root: Path, *, workers: int = 2, anew: bool = True) -> Path:
    """Make the set in ``root``, replacing one of its name that is there; returns ``root``.

    Args:
        recipe: what is made.
        root: folder of the set. It appears whole or not at all; of several builders one works, the others wait.
        workers: processes; 0 or 1 makes all clips in this one.
        anew: False keeps a whole set of this recipe that is there by now.

    Raises:
        DemoError: the folder cannot be written, the disk is full, or ``root`` holds something else.
    """
    root = Path(root)
    _refuse_foreign(root, recipe)
    with _explained(root, recipe), hold(root, f"{recipe.name} set", wait=True):
        if not anew and is_complete(root, recipe):  # another process has just made it
            return root
        folder = _begin(root, recipe)
        try:
            make_missing_clips(folder, recipe, workers)
            folder.chmod(0o755)  # mkdtemp makes private folders; a cache may be shared
            _put_in_place(folder, root, recipe)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)  # where a rival was first
    return root


def is_complete(root: Path, recipe: Recipe) -> bool:
    """True if ``root`` holds a finished set of this recipe whose files all have their recorded size.

    Raises:
        OSError: the machine cannot say, for want of memory or open files.
    """
    try:
        marker = _read_marker(root, recipe.name)
        return marker["recipe"] == recipe.values and all(_is_whole(root, row) for row in marker["clips"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_of_machine(error):
            raise
        return False


def _read_marker(root: Path, name: str) -> dict[str, Any]:
    file = root / f"{name}.json"
    return unseal(file.read_bytes(), file, f"make the {name} set again")


def set_rows(root: Path, recipe: Recipe) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Manifest rows (clip_id, path, split and the recipe's own columns) and the heads of a finished set.

    Where bodies stand still, a column ``box`` says where (a stick or a drop may leave it).

    Raises:
        DemoError: ``root`` does not hold it.
    """
    if not is_complete(Path(root), recipe):
        raise DemoError(errno.ENOENT, f"no complete {recipe.name} set in {root}: make it first")
    marker = _read_marker(Path(root), recipe.name)
    rows = [{key: value for key, value in row.items() if key != "bytes"} for row in marker["clips"]]
    if recipe.standing is not None:
        boxes = _boxes(Path(root), recipe.standing)
        rows = [row | {BOX: boxes[row["clip_id"]]} for row in rows]
    return rows, recipe.heads


def _boxes(root: Path, side: int) -> dict[str, str]:
    """The box of every clip's body, which reaches its size to each side of its centre."""
    try:
        truth = json.loads((root / TRUTH).read_text())
        bodies = {name: [float(value) for value in facts["body"]] for name, facts in truth.items()}
        corners = {name: (x - size, y - size, x + size, y + size) for name, (x, y, size) in bodies.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_of_machine(error):
            raise
        raise DemoError(
            errno.ENOENT, f"{root / TRUTH} is missing or damaged: delete the folder, and the set is made anew"
        ) from error
    return {
        name: " ".join(f"{min(max(value / side, 0.0), 1.0):.4f}" for value in values)
        for name, values in corners.items()
    }


def _is_whole(root: Path, row: dict[str, Any]) -> bool:
    return (root / row["path"]).stat().st_size == row["bytes"]


def _versions() -> dict[str, str]:
    return {"av": av.__version__, "numpy": np.__version__, "scipy": scipy.__version__}


def _begin(root: Path, recipe: Recipe) -> Path:
    """A folder that may hold the clips of a builder that was stopped; drops what others left.

    Whoever holds the lock is the only one who builds: what others left is dead, whatever the clock says of its age.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=".partial", dir=root.parent))
    own = re.compile(rf"\.{re.escape(root.name)}-[a-z0-9_]+(\.old)?\.partial")
    left = [path for path in root.parent.iterdir() if own.fullmatch(path.name) and path != folder]
    for path in left:
        with contextlib.suppress(OSError):
            if _header(path) == _header_of(recipe):
                path.rename(folder)  # onto an empty folder
                logger.info("going on with the %s set that was stopped before", recipe.name)
                break
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _header_of(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.values, "versions": _versions()}


def _header(folder: Path) -> Any:
    try:
        with (folder / JOURNAL).open() as journal:
            return json.loads(journal.readline())
    except (OSError, ValueError):
        return None


def _journalled(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Row and truth of every clip that is made already, by its id."""
    done = {}
    with contextlib.suppress(OSError):
        for line in (folder / JOURNAL).read_text().splitlines()[1:]:
            with contextlib.suppress(OSError, ValueError):  # the last line may be torn
                row, truth = json.loads(line)
                if _is_whole(folder, row):
                    done[row["clip_id"]] = row, truth
    return done


def make_missing_clips(folder: Path, recipe: Recipe, workers: int) -> None:
    """Writes all clips of ``recipe`` that the journal in ``folder`` does not have, by so many processes."""
    clips = recipe.clips()
    for split in dict(clips):
        (folder / split).mkdir(exist_ok=True)
    done = _journalled(folder)
    jobs = [(str(folder), recipe, split, index) for split, index in clips if _clip_id(split, index) not in done]
    start = time.perf_counter()
    lines = [json.dumps(line) + "\n" for line in (_header_of(recipe), *done.values())]
    (folder / JOURNAL).write_text("".join(lines))
    with (
        (folder / JOURNAL).open("a", buffering=1) as journal,
        Meter(f"making the {recipe.name} set", total=len(clips), unit="clip", initial=len(done)) as meter,
    ):
        for row, truth in _results(jobs, workers):
            done[row["clip_id"]] = row, truth
            journal.write(json.dumps([row, truth]) + "\n")
            meter.update()
    logger.info("made %d %s clips in %.1f s", len(jobs), recipe.name, time.perf_counter() - start)
    made = {name: done[name] for name in (_clip_id(*clip) for clip in clips)}
    (folder / TRUTH).write_text(json.dumps({name: truth for name, (_, truth) in made.items()}))
    marker = {**_header_of(recipe), "heads": recipe.heads, "clips": [row for row, _ in made.values()]}
    with atomic_path(folder / recipe.marker) as temporary:
        temporary.write_text(json.dumps(seal(marker)))
    (folder / JOURNAL).unlink()


Job = tuple[str, Recipe, str, int]


def _results(jobs: list[Job], workers: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
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


def _clip_id(split: str, index: int) -> str:
    return f"{split}-{index:04d}"


def _make(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make and write one clip: (manifest row with its size in bytes, truth)."""
    folder, recipe, split, index = job
    made = recipe.make(split, index)
    path = Path(split) / f"{index:04d}.mp4"
    write_mp4(Path(folder) / path, made.frames, made.audio, fps=FPS, sample_rate=SAMPLE_RATE)
    size = (Path(folder) / path).stat().st_size
    row = {"clip_id": _clip_id(split, index), "path": path.as_posix(), "split": split, "bytes": size}
    return row | made.columns, made.truth


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


def _refuse_foreign(root: Path, recipe: Recipe) -> None:
    """Only a set of this name, whole or broken, or an empty folder is ever replaced."""
    known = {recipe.marker, TRUTH, JOURNAL, "pretrain", "train", "val", "test"}
    try:
        found = {entry.name for entry in root.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        reason = f"cannot use {root} for the {recipe.name} set: {error.strerror}; check the path"
        raise DemoError(error.errno, reason) from error
    if not found <= known:
        raise DemoError(errno.EEXIST, f"{root} holds other files ({min(found - known)}, ...): name an empty folder")


@contextlib.contextmanager
def _explained(root: Path, recipe: Recipe) -> Iterator[None]:
    """Turn the system's errors into one line that names the folder and the fix."""
    try:
        yield
    except DemoError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason, fix = "the disk is full", f"free {max(50, len(recipe.clips()) // 20)} MB"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason, fix = "the folder is read-only", "make it writable"
        else:
            reason, fix = error.strerror or str(error), "check the path"
        message = f"cannot make the {recipe.name} set in {root}: {reason}; {fix}, or name another folder in AVSSL_CACHE"
        raise DemoError(error.errno, message) from error
