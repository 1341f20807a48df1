"""The run that trains: its folder, opened for writing, what it holds, and when it may be continued."""

import json
import logging
import shlex
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from lightning_fabric import Fabric
from torch import nn

from avssl.bounds import check_bounds
from avssl.checkpoint import CONFIG, CheckpointStore, edited_by_hand, is_sharded, read_head, run_settings
from avssl.config import DataConfig, WandbConfig, to_dict, to_yaml
from avssl.data.catalog import OWN_CLIP_SECONDS, stated_seconds
from avssl.data.failures import FailureMonitor
from avssl.data.splits import Splits
from avssl.files import atomic_path, remove_leftovers, seal, seal_text
from avssl.locks import HeldError, hold, refuse_held
from avssl.saved_runs import EXPORT, HELD_OUT, TRAINED_ON, read_held_out, run_folder
from avssl.tracking import Tracker, check_tracking
from avssl.training.engine import Engine
from avssl.training.launch import check_alike
from avssl.training.task import Task
from avssl.urls import hidden
from mast import LogMel

logger = logging.getLogger(__name__)

# Settings that change how a run computes or is watched, not what it computes.
FREE_SETTINGS = (
    "runtime",
    "log",
    "wandb",
    "tensorboard",
    "loggers",
    "imports",
    "resume",
    "output",
    "data.num_workers",
    "data.clip_timeout",
    "data.max_pixels",
    "data.max_clip_bytes",
    "optim.batch_size",
    "optim.chunk",
    "collapse_rank",
    "compare_random",
)


class Run:
    """The folder of a run: opened for writing by ``with``, once everything that can be checked has been.

    A start that fails in there before anything was trained leaves the folder as it was before. One run at a time writes
    to a folder.

    Args:
        config: Config of the run, written to ``config.yaml``.
        folder: Folder of the run.
        fabric: Launched Fabric.
        wandb: W&B settings.
        job_type: pretrain or finetune.

    Raises:
        FileNotFoundError: ``resume`` names no file.
        SettingsError: a setting cannot have its value.
        ValueError: the folder, or the checkpoint to resume, is of a run of other settings; or what shall watch the run
            cannot be had.
        HeldError: another process is training in the folder, or was while this one got ready.
    """

    tracker: Tracker

    def __init__(self, config: Any, folder: Path, fabric: Fabric, wandb: WandbConfig, job_type: str) -> None:
        check_bounds(config)
        self.folder, self.fabric, self.config, self.wandb, self.job_type = folder, fabric, config, wandb, job_type
        check_tracking(wandb.mode, config.tensorboard, config.loggers)
        if fabric.is_global_zero:
            refuse_held(folder, "run")
        self.store = CheckpointStore(fabric, folder / "checkpoints")
        fresh = config.resume == "none" or not _holds_training(folder)
        if not fresh:
            check_same(folder, config)
        self.checkpoint = self.store.latest(config.resume)
        self._state: dict[str, Any] = {}
        if self.checkpoint:
            self._state = self._resumable(self.checkpoint)
        origin = folder if self.checkpoint is None else run_of(self.checkpoint)
        # What this run, or the one that it continues, held out before.
        self.held_out = {} if fresh and self.checkpoint is None else read_held_out(origin)
        self._fresh, self._there = fresh, folder.exists()
        self._seen = _state_of(folder)
        self._lock = ExitStack()
        self._before: set[Path] | None = None  # what is in the folder when it is opened
        self._backup: Path | None = None

    @property
    def step(self) -> int:
        """Step that the run continues at; 0 for a new one."""
        return int(self._state["progress"]["step"]) if self.checkpoint else 0

    def check_data(self, splits: Splits, steps: int) -> None:
        """Refuses to continue on other clips, or, by a checkpoint that ``resume`` names, a schedule that has ended.

        Args:
            splits: The data of this run.
            steps: Steps of its schedule.

        Raises:
            ValueError: naming the way out.
        """
        advice = "give --checkpoint FILE, without --resume, and another --output, which starts anew from its weights"
        digest = self._state.get("settings", {}).get("manifest", splits.digest)
        if digest != splits.digest:
            raise ValueError(
                f"resume: {self.checkpoint} is of a run on other clips than data {self.config.data.name} has now "
                f"(manifest {digest}, now {splits.digest}): {advice}"
            )
        if self.config.resume not in ("auto", "none") and self.step >= steps:
            raise ValueError(
                f"resume: the schedule of {self.checkpoint} has ended, at step {self.step} of {steps}: to train on, "
                f"{advice}"
            )

    def __enter__(self) -> "Run":
        if self.fabric.is_global_zero:
            self._begin()
        self.fabric.barrier()
        try:
            self.tracker = Tracker(
                self.folder,
                to_dict(self.config),
                **vars(self.wandb),
                job_type=self.job_type,
                tensorboard=self.config.tensorboard,
                loggers=self.config.loggers,
                run_id=self._state.get("wandb_id"),
                resumed=self.checkpoint is not None,
                enabled=self.fabric.is_global_zero,
            )
        except BaseException:
            self._abandon()
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            if kind is not None and self._fresh and self.fabric.is_global_zero and not _holds_training(self.folder):
                self.tracker.finish(exit_code=1)
                self._abandon()

    def record_clips(self, splits: Splits) -> None:
        """Writes down what was held out and what is trained on, so that whoever evaluates the run holds out the same
        and is told of clips that it has seen."""
        if not self.fabric.is_global_zero:
            return
        (self.folder / HELD_OUT).unlink(missing_ok=True)  # of a start that was killed
        if splits.held_out:
            values = {name: asdict(rows) for name, rows in splits.held_out.items()}
            with atomic_path(self.folder / HELD_OUT) as temporary:
                temporary.write_text(json.dumps(seal(values)))
        with atomic_path(self.folder / TRAINED_ON) as temporary:
            pq.write_table(
                splits.train.table.select(["clip_id"]), temporary, compression="zstd", write_page_checksum=True
            )

    def settings(self, digest: str) -> dict[str, Any]:
        """What a checkpoint says of its run, beside the model's settings; ``digest`` is that of the data."""
        clips = self.config.optim.batch_size * self.fabric.world_size
        return {"global_batch": clips, "manifest": digest, "config": to_dict(self.config)}

    def engine(
        self, task: Task, steps: int, digest: str, settings: Mapping[str, Any], monitor: str | None = None
    ) -> Engine:
        """The engine that trains ``task`` in this folder; it goes on where the checkpoint of this run left off, if any.

        Args:
            task: What is trained.
            steps: Optimizer steps of the schedule.
            digest: Of the data.
            settings: What builds the trained model again, for checkpoints.
            monitor: Validation metric that chooses the best checkpoint.

        Raises:
            ValueError: the checkpoint has changed since, or is another one for another process.
        """
        config = self.config
        engine = Engine(
            self.fabric,
            task,
            optim=config.optim,
            log=config.log,
            steps=steps,
            tracker=self.tracker,
            store=self.store,
            failures=FailureMonitor(config.data.max_failures),
            settings={**settings, **self.settings(digest)},
            monitor=monitor,
            seed=config.seed,
            graphs=config.runtime.graphs == "auto",
            compile_frontend=config.runtime.compile,
        )
        self._resume(engine)
        return engine

    def _resume(self, engine: Engine) -> None:
        if self.checkpoint is None:
            return
        engine.resume(self.checkpoint)
        if engine.progress.step != self.step:
            raise ValueError(
                f"resume: {self.checkpoint} was of step {self.step} and is of step {engine.progress.step} now: another "
                "run is writing it; wait for that, or copy the file"
            )
        check_alike(self.fabric, {f"of {self.checkpoint} the step": engine.progress.step})

    def describe(self, models: Mapping[str, nn.Module], digest: str) -> None:
        """Has the tracker show the number of parameters of ``models``, by name, and the ``digest`` of the data."""
        counts = {name: sum(part.numel() for part in model.parameters()) for name, model in models.items()}
        self.tracker.summary({f"parameters/{name}": count for name, count in counts.items()} | {"data/digest": digest})

    def picture(self, name: str) -> Path:
        """Path of a picture of this run."""
        return self.folder / "pictures" / f"{name}.png"

    def _begin(self) -> None:
        """Locks the folder and writes the config, once nobody else has trained there since this run looked."""
        try:
            with ExitStack() as stack:
                stack.enter_context(hold(self.folder, "run"))
                if _state_of(self.folder) != self._seen:
                    raise HeldError(f"output: another process has trained in {self.folder} since: run this again")
                self._write_config()
                for folder in (self.folder, self.folder / "pictures", self.folder / EXPORT):
                    remove_leftovers(folder)
                self._lock = stack.pop_all()
        except HeldError:
            raise
        except OSError as error:
            self._abandon()
            raise OSError(
                f"output: cannot write to {self.folder}: {error.strerror}; choose another --output"
            ) from error

    def _write_config(self) -> None:
        path = self.folder / CONFIG
        if self.config.resume == "none" and (path.is_file() or _holds_training(self.folder)):
            self._backup = _free_name(self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
            self.folder.rename(self._backup)
            logger.info("kept the earlier run as %s", self._backup)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._before = set(self.folder.iterdir())
        with atomic_path(path) as temporary:
            temporary.write_text(seal_text(to_yaml(self.config)))

    def _abandon(self) -> None:
        """Takes away what this start has written, and puts the earlier run back."""
        if not self._fresh or not self.fabric.is_global_zero:
            return
        if self._before is not None:
            for path in set(self.folder.iterdir()) - self._before:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if self._backup is not None or not self._there:
                self.folder.rmdir()
        if self._backup is not None:
            self._backup.rename(self.folder)

    def _resumable(self, checkpoint: Path) -> dict[str, Any]:
        """Settings and progress of a checkpoint that this run can continue, on however many processes.

        Its batch and kind of strategy stay what they were.
        """
        state = read_head(checkpoint)
        if isinstance(kept := state["settings"].get("config"), dict):
            _check_equal(kept, self.config, checkpoint)
        elif self.config.resume not in ("auto", "none") and (run_folder(checkpoint) / CONFIG).is_file():
            check_same(run_folder(checkpoint), self.config)
        missing = {"sharded", "settings", "wandb_id", "progress"} - state.keys()
        if missing or "global_batch" not in state["settings"]:
            raise ValueError(f"resume: {checkpoint} holds weights alone, not a run; start from it by --checkpoint")
        if state["sharded"] != is_sharded(self.fabric):
            raise ValueError(
                f"{checkpoint} was written {'with' if state['sharded'] else 'without'} runtime.strategy fsdp"
            )
        before, world = state["settings"]["global_batch"], self.fabric.world_size
        if before != self.config.optim.batch_size * world:
            fix = f"give --optim.batch_size {before // world}" if before % world == 0 else "use a divisor of it"
            raise ValueError(
                f"{checkpoint} is of a run with {before} clips a batch, not {self.config.optim.batch_size} x {world} "
                f"processes: {fix}, or --resume none to start over (the old folder is kept)"
            )
        return {name: state[name] for name in ("settings", "wandb_id", "progress")}


def _free_name(path: Path) -> Path:
    """``path``, or with a number behind it where it is taken, as after the clock was set back."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _holds_training(folder: Path) -> bool:
    """Whether a run trained in ``folder``, be it a single step: a start that was killed before that is no run."""
    return any(size for size, _ in _state_of(folder).values())


def _state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of what a training writes in ``folder``."""
    results = [folder / "metrics.jsonl", folder / "result.json", *folder.glob("checkpoints/*.ckpt")]
    stats = {path.name: path.stat() for path in results if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is of; None of a file that was put into the folder of another run.

    A change of ``config.yaml`` by hand makes no other run of it.
    """
    folder = run_folder(checkpoint)
    if not checkpoint.is_file() or edited_by_hand(folder):
        return folder
    own, there = read_head(checkpoint)["settings"].get("config"), run_settings(folder)
    other = _other_setting(hidden(own), there) if isinstance(own, dict) else ""
    if not other:
        return folder
    logger.warning(
        "%s is not of the run in %s, whose %s is another: what that run held out and trained on does not count for it",
        *(checkpoint, folder, other),
    )
    return None


def _other_setting(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> str:
    """The first setting that has two values, :data:`FREE_SETTINGS` apart; "" where there is none."""
    for key in sorted(one.keys() & other.keys()):
        name, (first, second) = f"{prefix}{key}", (one[key], other[key])
        if name in FREE_SETTINGS or first is None or second is None or first == second:
            continue
        if not (isinstance(first, dict) and isinstance(second, dict)):
            return name
        if found := _other_setting(first, second, f"{name}."):
            return found
    return ""


def next_command(command: str, checkpoint: Path, data: DataConfig | None, split: str | None = "test") -> str:
    """The command line that goes on from a run with the same data; None: with data that are still to be named.

    ``split`` is what it shall evaluate, and what the run was judged on.
    """
    words = ["avssl", command, "--checkpoint", str(checkpoint)]
    if data is None:
        return f"{shlex.join(words)} --data LABELLED_DATA"
    words += ["--data", data.name]
    words += [] if data.root is None else ["--data.root", str(data.root)]
    words += ["--data.options", json.dumps(data.options)] if data.options else []
    if data.clip_seconds not in (None, stated_seconds(data.name)):
        words += ["--data.clip_seconds", f"{data.clip_seconds:g}"]
    words += [] if split in ("test", None) else ["--split", split]
    return shlex.join(words)


def log_next_command(result: Mapping[str, Any]) -> None:
    """Logs the command lines that go on from a finished run."""
    if result.get("next"):
        logger.info("next: %s", "\n   or: ".join(result["next"]))


def check_same(folder: Path, config: Any) -> None:
    """Checks that the run in ``folder`` has the settings of ``config``, :data:`FREE_SETTINGS` apart.

    Raises:
        ValueError: it has others; the message names the first. Or it does not say which it has.
    """
    settings = run_settings(folder)
    if not settings:
        raise ValueError(
            f"{folder} holds a run whose {CONFIG} is missing or damaged, and no checkpoint that has its settings: put "
            "the file back, choose another --output, or give --resume none to start over (the old folder is kept)"
        )
    _check_equal(settings, config, folder)


def _check_equal(settings: dict[str, Any], config: Any, where: Path) -> None:
    old, new = by_dotted_name(hidden(_as_now(settings)), config), by_dotted_name(to_dict(config), config)
    # What a run had of settings that were not there yet: the default, or, once that is completed, the frontend's.
    usual = by_dotted_name(to_dict(type(config)()), config)
    completed = {f"audio.{key}": value for key, value in LogMel().config.items()}
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_SETTINGS)
        before = old[key] if key in old else usual.get(key)
        if (
            key == "data.clip_seconds" and key in old and before is None is not new.get(key)
        ):  # of a run of before this was written down
            before = stated_seconds(config.data.name) or OWN_CLIP_SECONDS
        if key not in old and key in completed and new.get(key) == completed[key]:
            continue
        if not free and before != new.get(key):
            raise ValueError(
                f"{where} holds a run with {key} = {before!r}, not {new.get(key)!r}: choose another --output, with "
                "--checkpoint to start from its weights, or give --resume none to start over (the old folder is kept)"
            )


def _as_now(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run in today's form: mixup was the alpha of mixing within the batch, 0 for none."""
    augment = settings.get("augment")
    if not isinstance(augment, dict) or isinstance(alpha := augment.get("mixup", {}), dict):
        return settings
    mixup = {"kind": "batch", "alpha": alpha} if alpha else {"kind": "none"}
    return settings | {"augment": augment | {"mixup": mixup}}


def by_dotted_name(values: dict[str, Any], config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; of a setting that is a mapping, such as options, the whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        part = getattr(config, key, None)
        if is_dataclass(part) and isinstance(value, dict):
            flat |= by_dotted_name(value, part, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
