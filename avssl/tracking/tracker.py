"""Where the numbers of a run go: always its metrics files, and beside them W&B and TensorBoard."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.files import atomic_path
from avssl.tracking.tensorboard import TensorBoard, check_tensorboard
from avssl.tracking.wandb_run import Mode, WandbRun, choose_mode, stated_mode

logger = logging.getLogger(__name__)

# Sees a logged row and its step; returns what is wrong with the run, if anything is.
Watch = Callable[[Mapping[str, Any], int], str | None]


def check_tracking(mode: Mode | None, tensorboard: bool) -> None:
    """Checks, before a run writes anything, what a :class:`Tracker` would refuse.

    Raises:
        ValueError: an unknown ``WANDB_MODE``, or TensorBoard is wanted and missing.
    """
    stated_mode(mode)
    if tensorboard:
        check_tensorboard()


def sweep_folder() -> Path | None:
    """Folder of this run of a W&B sweep; None outside of one. An agent's runs would all have the same default one."""
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path("runs") / f"sweep-{sweep}" / run if sweep and run else None


class Tracker:
    """Writes ``metrics.jsonl`` (one row a step, value for value reproducible), ``speed.jsonl``, and W&B.

    Args:
        folder: Folder of the run.
        config: Resolved config, logged to W&B and TensorBoard.
        mode: Of W&B: online, offline, disabled, or None for :func:`avssl.tracking.wandb_run.choose_mode`.
        project: W&B project; this and the following: see :class:`avssl.tracking.wandb_run.WandbRun`.
        entity: W&B user or team.
        name: W&B run name.
        group: W&B group.
        notes: Notes of the run.
        tags: W&B tags.
        job_type: Kind of run: pretrain, finetune.
        tensorboard: Write TensorBoard's event files, too.
        run_id: W&B id of the run that is continued.
        resumed: Keep the rows that the metrics files hold.
        enabled: False on all processes but one, which then write nothing.

    Attributes:
        wandb: The W&B run, where there is one.
        tensorboard: TensorBoard's writer, where there is one.
        run_id: W&B id of the run.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        mode: Mode | None = None,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] = (),
        job_type: str | None = None,
        tensorboard: bool = False,
        run_id: str | None = None,
        resumed: bool = False,
        enabled: bool = True,
    ) -> None:
        self.folder, self.enabled = folder, enabled
        self.wandb: WandbRun | None = None
        self.tensorboard: TensorBoard | None = None
        self.run_id = run_id
        self._watches: list[Watch] = []
        if not enabled:
            return
        self.metrics_path, self.speed_path = folder / "metrics.jsonl", folder / "speed.jsonl"
        if not resumed:
            self.metrics_path.write_text("")
            self.speed_path.write_text("")
        if tensorboard:
            self.tensorboard = TensorBoard(folder, config, resumed=resumed)
        mode = choose_mode(mode)
        if mode != "disabled":
            self.wandb = WandbRun(
                folder,
                config,
                mode=mode,
                project=project,
                entity=entity,
                name=name,
                group=group,
                notes=notes,
                tags=tags,
                job_type=job_type,
                run_id=run_id,
            )
            self.run_id = self.wandb.run.id

    def log(self, row: dict[str, float], step: int) -> None:
        """Logs one row of metrics."""
        self._write(self.metrics_path if self.enabled else None, row, step)
        for watch in self._watches:
            if message := watch(row, step):
                logger.warning(message)
                if self.wandb is not None:
                    self.wandb.alert("Training looks wrong", message)

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
        self._write(self.speed_path if self.enabled else None, row, step)

    def _write(self, path: Path | None, row: dict[str, float], step: int) -> None:
        if path is None:
            return
        with path.open("a") as file:
            file.write(json.dumps({"step": step} | row) + "\n")
        changing = {name: value for name, value in row.items() if not is_constant(name)}
        if self.wandb is not None:
            self.wandb.constants({name: value for name, value in row.items() if name not in changing})
            self.wandb.log({"step": step} | changing)
        if self.tensorboard is not None:
            self.tensorboard.log(changing, step)

    def sync(self) -> None:
        """Has the disk keep all rows so far: a checkpoint must not outlive the metrics of its steps."""
        for path in (self.metrics_path, self.speed_path) if self.enabled else ():
            with path.open("ab") as file:
                os.fsync(file.fileno())

    def rewind(self, step: int, without: str | None = None) -> None:
        """Drops rows after ``step``, which a resumed run writes again; rows that a crash or a disk damaged go too.

        Rows of ``step`` itself with metrics whose names begin with ``without`` are also written again.
        """
        if not self.enabled:
            return
        for path in (self.metrics_path, self.speed_path):
            if not path.is_file():
                logger.warning("%s is missing: its rows up to step %d are lost", path, step)
            rows = [
                row for row in read_rows(path) if row["step"] < step or (row["step"] == step and not _has(row, without))
            ]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self.tensorboard is not None:
            self.tensorboard.rewind(step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values of the run; of those that do not change, W&B's config has the numbers."""
        final = {name: value for name, value in values.items() if not is_constant(name)}
        if self.wandb is not None:
            self.wandb.constants({name: value for name, value in values.items() if name not in final})
            self.wandb.summary(final)
        if self.tensorboard is not None:
            self.tensorboard.summary(final)

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """PNG files, by name."""
        for sink in (self.wandb, self.tensorboard):
            if sink is not None:
                sink.log_pictures(pictures)

    def finish(self, exit_code: int = 0) -> None:
        """Closes what is open."""
        if self.tensorboard is not None:
            self.tensorboard.finish()
        if self.wandb is not None:
            self.wandb.finish(exit_code)
            self.wandb = None


def is_constant(name: str) -> bool:
    """Whether the metric follows from the data alone: chance, and numbers of clips and classes."""
    parts = name.split("/")
    return "chance" in parts or parts[-1] in ("count", "classes")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file. Lines that a crash cut short or a disk damaged are left out, with a warning."""
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        if not line:
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        logger.warning("%s: %d damaged lines left out: %s", path, len(damaged), shown)
    return rows


def _has(row: Mapping[str, Any], prefix: str | None) -> bool:
    return prefix is not None and any(name.startswith(prefix) for name in row)
