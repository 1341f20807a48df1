"""Where the numbers of a run go: always a local metrics file, and Weights & Biases."""

import json
import logging
import netrc
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np
import wandb
from scipy.io import wavfile

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
# Sees a logged row and its step; returns what is wrong with the run, if anything is.
Watch = Callable[[Mapping[str, Any], int], str | None]
# A run goes on without what W&B refuses: it has its numbers on disk.
WANDB_ERRORS = (wandb.Error, OSError, ValueError, TypeError)


def default_mode() -> Mode:
    """online where there is a login and the server answers, else offline."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if not os.environ.get("WANDB_API_KEY"):
        try:
            if netrc.netrc().authenticators(host) is None:
                return "offline"
        except (OSError, netrc.NetrcParseError):
            return "offline"
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return "offline"
    return "online"


def sweep_folder() -> Path | None:
    """Folder of this run of a W&B sweep; None outside of one. An agent's runs would all have the same default one."""
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path("runs") / f"sweep-{sweep}" / run if sweep and run else None


class Tracker:
    """Writes ``metrics.jsonl`` (one row a step, value for value reproducible), ``speed.jsonl``, and a W&B run.

    Args:
        folder: Folder of the run.
        config: Resolved config, logged to W&B.
        mode: online, offline, disabled, or None for :func:`default_mode`.
        project: W&B project.
        entity: W&B user or team.
        name: W&B run name; default: the folder's name.
        tags: W&B tags.
        job_type: Kind of run: pretrain, finetune.
        run_id: W&B id of the run that is continued.
        resumed: Keep the rows that the metrics file holds.
        enabled: False on all processes but one, which then write nothing.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        mode: Mode | None = None,
        project: str = "avssl",
        entity: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        job_type: str | None = None,
        run_id: str | None = None,
        resumed: bool = False,
        enabled: bool = True,
    ) -> None:
        self.folder, self.enabled = folder, enabled
        self.run: Any = None
        self.run_id = run_id
        self._watches: list[Watch] = []
        if not enabled:
            return
        self.metrics_path, self.speed_path = folder / "metrics.jsonl", folder / "speed.jsonl"
        if not resumed:
            self.metrics_path.write_text("")
            self.speed_path.write_text("")
        mode = mode or default_mode()
        if mode == "disabled":
            return
        self.run = wandb.init(
            id=run_id,
            resume="allow" if run_id else None,
            mode=mode,
            dir=folder,
            project=project,
            entity=entity,
            name=name or folder.name,
            tags=tags,
            job_type=job_type,
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run_id = self.run.id
        # Metrics are drawn over our step: a resumed run may log a step again, which W&B's own counter refuses.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        logger.info("W&B %s, run %s%s", mode, self.run_id, f": {self.run.url}" if mode == "online" else "")

    def log(self, row: dict[str, float], step: int) -> None:
        """Logs one row of metrics."""
        self._write(self.metrics_path if self.enabled else None, row, step)
        for watch in self._watches:
            if message := watch(row, step):
                logger.warning(message)
                self.alert("Training looks wrong", message)

    def watch(self, watch: Watch) -> None:
        """Shows every row that is logged to ``watch`` and warns of what it says.

        Rows that a resumed run had logged before are shown to it first: it said then what it had to say of them.
        """
        if self.enabled:
            for row in read_rows(self.metrics_path):
                watch(row, row["step"])
            self._watches.append(watch)

    def alert(self, title: str, text: str) -> None:
        """A warning of W&B's, which it mails or posts where the user has set that up."""
        if self.run is not None:
            try:
                self.run.alert(title, text, level="WARN")
            except WANDB_ERRORS as error:
                logger.warning("W&B took no alert: %s", error)

    def log_speed(self, row: dict[str, float], step: int) -> None:
        """Logs throughput, which no two runs share."""
        self._write(self.speed_path if self.enabled else None, row, step)

    def _write(self, path: Path | None, row: dict[str, float], step: int) -> None:
        if path is None:
            return
        with path.open("a") as file:
            file.write(json.dumps({"step": step} | row) + "\n")
        if self.run is not None:
            self.run.log({"step": step} | row)

    def rewind(self, step: int) -> None:
        """Drops rows after ``step``, which a resumed run writes again; a row cut short by a crash goes too."""
        if not self.enabled:
            return
        for path in (self.metrics_path, self.speed_path):
            rows = [row for row in read_rows(path) if row["step"] <= step]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(partial, path)

    def summary(self, values: dict[str, Any]) -> None:
        """Final values of the run."""
        if self.run is not None:
            self.run.summary.update(values)

    def log_pictures(self, pictures: dict[str, Path]) -> None:
        """PNG files, by name."""
        if self.run is not None:
            self.run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})

    def log_confusion(self, head: str, target: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> None:
        """W&B's interactive confusion matrix of ``target`` (N,) and ``predicted`` (N,) class indices."""
        if self.run is not None:
            plot = wandb.plot.confusion_matrix(
                y_true=target.tolist(), preds=predicted.tolist(), class_names=class_names, title=head
            )
            self.run.log({f"confusion_matrix/{head}": plot})

    def log_clips(self, name: str, waveforms: np.ndarray, frames: np.ndarray, sample_rate: int, ids: list[str]) -> None:
        """A table of clips: ``waveforms`` (B, S) to play, the middle frame of ``frames`` (B, 3, T, H, W) uint8."""
        if self.run is None:
            return
        table = wandb.Table(columns=["clip", "audio", "frame"])
        folder = self.folder / "clips"
        folder.mkdir(exist_ok=True)
        for number, (waveform, clip, clip_id) in enumerate(zip(waveforms, frames, ids, strict=True)):
            path = folder / f"{number}.wav"
            wavfile.write(path, sample_rate, (waveform.clip(-1, 1) * 32767).astype(np.int16))
            middle = clip[:, clip.shape[1] // 2].transpose(1, 2, 0)
            table.add_data(clip_id, wandb.Audio(str(path), caption=clip_id), wandb.Image(middle))
        self.run.log({name: table})

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run."""
        if self.run is not None:
            self.run.finish(exit_code=exit_code)
            self.run = None


def end_failed_run() -> None:
    """Ends the W&B run that a run which failed left open: a further run of this process would be logged into it."""
    if wandb.run is not None:
        wandb.run.finish(exit_code=1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file; a last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
