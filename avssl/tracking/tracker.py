"""Where the numbers and models of a run go: its metrics files, and beside them the loggers that its config names."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from avssl.files import DamagedError, atomic_path, seal, unseal
from avssl.tracking.loggers import (
    LOGGERS,
    LoggedRun,
    Logger,
    MetricsFiles,
    TensorBoard,
    check_tensorboard,
    read_loggers,
    read_rows,
)
from avssl.tracking.wandb_run import WANDB_ERRORS, Mode, WandbRun, choose_mode, stated_mode

logger = logging.getLogger(__name__)

# Sees a logged row and its step; returns what is wrong with the run, if anything is.
Watch = Callable[[Mapping[str, Any], int], str | None]


def check_tracking(mode: Mode | None, tensorboard: bool, loggers: Sequence[Mapping[str, Any]] = ()) -> None:
    """Checks, before a run writes anything, what a :class:`Tracker` would refuse.

    Raises:
        ValueError: an unknown ``WANDB_MODE``, TensorBoard is wanted and missing, or a logger that there is not.
    """
    if "tensorboard" in _loggers(stated_mode(mode) or "disabled", tensorboard, {}, loggers):
        check_tensorboard()


def _loggers(
    mode: Mode, tensorboard: bool, wandb: Mapping[str, Any], further: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The options of all loggers of a run by name, in their order."""
    named: dict[str, dict[str, Any]] = {"metrics": {}}
    if tensorboard:
        named["tensorboard"] = {}
    if mode != "disabled":
        named["wandb"] = {"mode": mode, **wandb}
    return named | read_loggers(further, named)


def sweep_folder() -> Path | None:
    """Folder of this run of a W&B sweep; None outside of one. An agent's runs would all have the same default one."""
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path("runs") / f"sweep-{sweep}" / run if sweep and run else None


class Tracker:
    """Tells the loggers of a run: its metrics files first, then TensorBoard, W&B and those of ``loggers``.

    Args:
        folder: Folder of the run.
        config: Resolved config, given to the loggers.
        mode: Of W&B: online, offline, disabled, or None for :func:`avssl.tracking.wandb_run.choose_mode`.
        tensorboard: Write TensorBoard's event files, too.
        loggers: Further ones: the name of each and its options.
        job_type: Kind of run: pretrain, finetune.
        run_id: W&B id of the run that is continued.
        resumed: Keep the rows that the metrics files hold.
        enabled: False on all processes but one, which then have no loggers.
        **wandb: Project, entity, name, group, notes and tags, see :class:`avssl.tracking.wandb_run.WandbRun`.

    Attributes:
        loggers: In the order in which they are told.
        run_id: W&B id of the run.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        mode: Mode | None = None,
        tensorboard: bool = False,
        loggers: Sequence[Mapping[str, Any]] = (),
        job_type: str | None = None,
        run_id: str | None = None,
        resumed: bool = False,
        enabled: bool = True,
        **wandb: Any,
    ) -> None:
        self.folder, self.enabled, self.run_id = folder, enabled, run_id
        self.loggers: list[Logger] = []
        self._watches: list[Watch] = []
        self._failed: set[tuple[int, str]] = set()
        if not enabled:
            return
        run = LoggedRun(folder, config, resumed, job_type, run_id)
        for name, options in _loggers(choose_mode(mode), tensorboard, wandb, loggers).items():
            self.loggers.append(LOGGERS.get(name)(run, **options))
        files = self.loggers[0]
        assert isinstance(files, MetricsFiles)
        self.metrics_path, self.speed_path = files.metrics_path, files.speed_path
        if self.wandb is not None:
            self.run_id = self.wandb.run.id

    @property
    def wandb(self) -> WandbRun | None:
        """The W&B run, where there is one."""
        return next((each for each in self.loggers if isinstance(each, WandbRun)), None)

    @property
    def tensorboard(self) -> TensorBoard | None:
        """TensorBoard's writer, where there is one."""
        return next((each for each in self.loggers if isinstance(each, TensorBoard)), None)

    def takes(self, method: str) -> bool:
        """Whether any logger has the method, for what is costly to make."""
        return any(getattr(type(each), method) is not getattr(Logger, method) for each in self.loggers)

    def _tell(self, method: str, *arguments: Any) -> None:
        for number, each in enumerate(self.loggers):
            try:
                getattr(each, method)(*arguments)
            except Exception as error:
                if type(each).__module__.startswith("avssl."):
                    raise
                if (number, method) not in self._failed:
                    logger.warning("the logger %s fails in %s: %r", type(each).__name__, method, error)
                self._failed.add((number, method))

    def log(self, row: dict[str, float], step: int) -> None:
        """Logs one row of metrics."""
        self._tell("log", row, step)
        for watch in self._watches:
            if message := watch(row, step):
                logger.warning(message)
                self._tell("alert", "Training looks wrong", message)

    def watch(self, watch: Watch) -> None:
        """Shows every row that is logged to ``watch`` and warns of what it says.

        Rows that a resumed run had logged before are shown to it first: it said then what it had to say of them.
        """
        if self.enabled:
            for row in read_rows(self.metrics_path):
                watch(row, row["step"])
            self._watches.append(watch)

    def log_speed(self, row: dict[str, float], step: int) -> None:
        """Logs throughput, which no two runs share."""
        self._tell("log_speed", row, step)

    def sync(self) -> None:
        """Has the disk keep all rows so far: a checkpoint must not outlive the metrics of its steps."""
        self._tell("sync")

    def rewind(self, step: int, without: str | None = None) -> None:
        """Drops rows after ``step``, which a resumed run writes again; rows that a crash or a disk damaged go too.

        Rows of ``step`` itself with metrics whose names begin with ``without`` are also written again.
        """
        self._tell("rewind", step, without)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values of the run."""
        self._tell("summary", values)

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """PNG files, by name."""
        self._tell("log_pictures", pictures)

    def log_confusion(self, head: str, target: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> None:
        """See :meth:`Logger.log_confusion`."""
        self._tell("log_confusion", head, target, predicted, class_names)

    def log_predictions(
        self, head: str, clip_ids: Sequence[str], target: np.ndarray, scores: np.ndarray, class_names: list[str]
    ) -> None:
        """See :meth:`Logger.log_predictions`."""
        self._tell("log_predictions", head, clip_ids, target, scores, class_names)

    def log_clips(self, name: str, waveforms: np.ndarray, frames: np.ndarray, sample_rate: int, ids: list[str]) -> None:
        """See :meth:`Logger.log_clips`."""
        self._tell("log_clips", name, waveforms, frames, sample_rate, ids)

    def finish(self, exit_code: int = 0) -> None:
        """Closes what is open; the metrics files can still be written to."""
        self._tell("finish", exit_code)
        del self.loggers[1:]


RECORD = "wandb_artifact.json"


@dataclass(frozen=True)
class ModelArtifact:
    """A model that a run logged to W&B; written to ``wandb_artifact.json`` in the run's folder.

    Attributes:
        folder: Folder of the model inside the run's.
        name: Name of the artifact.
        alias: Alias that means this run's version. The number of a version is known only once it is uploaded.
        digest: W&B's digest of the contents.
        run_id: W&B id of the run that logged it.
        project: W&B project.
        entity: W&B user or team; empty where none was set offline, and W&B then takes the default one.
    """

    folder: str
    name: str
    alias: str
    digest: str
    run_id: str
    project: str
    entity: str = ""

    @property
    def reference(self) -> str:
        """What W&B finds it by: ``entity/project/name:alias``."""
        return "/".join(part for part in (self.entity, self.project, f"{self.name}:{self.alias}") if part)

    def save(self, run_folder: Path) -> None:
        """Writes the record of the run in ``run_folder``."""
        with atomic_path(run_folder / RECORD) as temporary:
            temporary.write_text(json.dumps(seal(asdict(self)), indent=2) + "\n")

    @classmethod
    def find(cls, checkpoint: Path) -> "ModelArtifact | None":
        """The artifact that ``checkpoint``, a run folder or the model's folder in it, is; None where it is none."""
        for path in (checkpoint / RECORD, checkpoint.parent / RECORD):
            if path.is_file():
                try:
                    found = cls(**unseal(path.read_bytes(), path, "the run starts without it"))
                except (DamagedError, TypeError) as error:
                    logger.warning("W&B is not told what the run starts from: %s", error)
                    return None
                if checkpoint.resolve() in (path.parent.resolve(), (path.parent / found.folder).resolve()):
                    return found
        return None


def log_model(tracker: Tracker, folder: Path, metadata: dict[str, Any]) -> None:
    """Logs the model in ``folder``, inside the run's, as an artifact of type model named after the run's folder.

    W&B uploads the files from where they are; an offline run has to be synced before its folder is moved.
    """
    if not tracker.enabled:
        return
    (tracker.folder / RECORD).unlink(missing_ok=True)
    if tracker.wandb is None:
        return
    run = tracker.wandb.run
    name, alias = re.sub(r"[^A-Za-z0-9_.-]", "-", tracker.folder.name)[:128], f"run-{run.id}"
    try:
        artifact = wandb.Artifact(name, type="model", metadata=metadata)
        for path in sorted(path for path in folder.resolve().rglob("*") if path.is_file()):
            inside = path.relative_to(folder.resolve()).as_posix()
            artifact.add_file(str(path), name=inside, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", alias])
    except WANDB_ERRORS as error:
        logger.warning("W&B took no model: %s", error)
        return
    place = {"project": run.project or "", "entity": run.entity or ""}
    inside = folder.relative_to(tracker.folder).as_posix()
    ModelArtifact(inside, name, alias, artifact.digest, run.id, **place).save(tracker.folder)


def use_model(tracker: Tracker, checkpoint: Path | None) -> None:
    """Notes that the run started from ``checkpoint`` where that is a model that another run logged.

    It goes into W&B's config as ``pretrained_from`` and, online, into the lineage graph, which needs the server.
    """
    found = ModelArtifact.find(checkpoint) if checkpoint else None
    if tracker.wandb is None or found is None:
        return
    run = tracker.wandb.run
    origin = asdict(found) | {"reference": found.reference}
    run.config.update({"pretrained_from": origin}, allow_val_change=True)
    if run.offline:
        return
    try:
        run.use_artifact(found.reference, type="model")
    except WANDB_ERRORS as error:
        logger.warning("W&B does not know %s (an offline run that is not synced?): %s", found.reference, error)
