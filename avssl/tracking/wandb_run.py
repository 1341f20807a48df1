"""A run of Weights & Biases: settings over environment over defaults, and offline where the server refuses it."""

import configparser
import logging
import netrc
import os
import shlex
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch
from urllib.parse import urlparse

import numpy as np
import wandb
from scipy.io import wavfile

from avssl.data.media.write import write_mp4
from avssl.files import atomic_path
from avssl.progress import Meter
from avssl.tracking.loggers import LoggedRun, Logger, changing, is_constant, register_logger
from avssl.urls import hidden

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
# A run goes on without what W&B refuses: it has its numbers on disk.
WANDB_ERRORS = (wandb.Error, OSError, ValueError, TypeError)
# Other names that W&B has for the modes.
_ALIASES = {"run": "online", "shared": "online", "dryrun": "offline"}
_TABLE_ROWS = 10_000  # W&B cuts longer tables


def stated_mode(mode: Mode | None = None) -> Mode | None:
    """``mode`` where it is given, else what ``WANDB_DISABLED``, ``WANDB_MODE`` or ``wandb offline`` said, if anything.

    Raises:
        ValueError: ``WANDB_MODE`` is none of the modes.
    """
    if mode is not None:
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    said = (_setting("mode") or "").lower()
    for known in get_args(Mode):
        if _ALIASES.get(said, said) == known:
            return known  # type: ignore[no-any-return]
    if said:
        raise ValueError(f"WANDB_MODE: must be {', '.join(get_args(Mode))}, got {said!r}")
    return None


def choose_mode(mode: Mode | None = None) -> Mode:
    """:func:`stated_mode`, else online where there is a login and the server answers, and offline where not."""
    if stated := stated_mode(mode):
        return stated
    url = _setting("base_url") or "https://api.wandb.ai"
    return "online" if _has_login(url) and _answers(url) else "offline"


def _setting(name: str) -> str | None:
    """What W&B's environment variable says, else the settings that its command line keeps here or for the user."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    here = Path(os.environ.get("WANDB_DIR") or ".")
    for file in (here / ".wandb" / "settings", here / "wandb" / "settings", home / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file)
        except (OSError, ValueError, configparser.Error):
            continue
        if value := parser.get("default", name, fallback=""):
            return value
    return None


def _has_login(url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file, host = os.environ.get("NETRC"), urlparse(url)
    try:
        logins = netrc.netrc(os.path.expanduser(file) if file else None)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(logins.authenticators(name or "") for name in (host.netloc, host.hostname))


def _answers(url: str) -> bool:
    """Whether anything answers at ``url``, on its port, and through the proxy that the environment names."""
    try:
        urllib.request.urlopen(url, timeout=3).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # W&B may have other certificates
    except (OSError, ValueError):
        return False
    return True


@register_logger("wandb")
class WandbRun(Logger):
    """An open W&B run; what it refuses is warned of, and the run goes on.

    Args:
        run: The run, with the id of the one that it continues. ``WANDB_JOB_TYPE`` overrides its kind.
        mode: online or offline; None: :func:`choose_mode`.
        project, entity, name, group, notes, tags: Of the run; None and no tags leave them to W&B's environment
            variables. The project then is avssl, the name the folder's.

    Raises:
        ValueError: W&B takes the run not even offline.
    """

    def __init__(
        self,
        run: LoggedRun,
        *,
        mode: Mode | None = None,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.folder = folder = run.folder
        self._constants: dict[str, float] = {}
        self._refused: set[str] = set()
        given = {
            "id": run.run_id,
            "resume": "allow" if run.run_id else None,
            "dir": os.environ.get("WANDB_DIR") or folder,
            "project": project or _setting("project") or "avssl",
            "entity": entity or _setting("entity"),
            "name": name or os.environ.get("WANDB_NAME") or folder.name,
            "group": group or os.environ.get("WANDB_RUN_GROUP"),
            "notes": notes or os.environ.get("WANDB_NOTES"),
            "tags": list(tags) or None,
            "job_type": os.environ.get("WANDB_JOB_TYPE") or run.job_type,
            "config": run.config,
        }
        mode = choose_mode(mode)
        if mode == "disabled":
            raise ValueError("loggers: wandb is disabled by its environment variable, and wanted here: leave one out")
        self.run: Any = _init(mode, {key: value if key == "dir" else hidden(value) for key, value in given.items()})
        # Metrics are drawn over our step: a resumed run may log a step again, which W&B's own counter refuses.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.offline = bool(self.run.offline)
        where = "offline" if self.offline else f"online: {self.run.url}"
        logger.info("W&B run %s, %s", self.run.id, where)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """A row of metrics; those that do not change go into the config."""
        self._keep_constants(row)
        with self._forgiven("metrics"):
            self.run.log({"step": step} | changing(row))

    def _keep_constants(self, values: Mapping[str, Any]) -> None:
        """Numbers that do not change are config and not charts."""
        new = {key: value for key, value in values.items() if is_constant(key) and self._constants.get(key) != value}
        if new:
            self._constants |= new
            with self._forgiven("config"):
                self.run.config.update({"constants": dict(self._constants)}, allow_val_change=True)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values of the run."""
        self._keep_constants(values)
        with self._forgiven("summary"):
            self.run.summary.update(changing(values))

    def alert(self, title: str, text: str) -> None:
        """A warning of W&B's, which it mails or posts where the user has set that up."""
        with self._forgiven("alert"):
            self.run.alert(hidden(title), hidden(text), level="WARN")

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """PNG files, by name."""
        with self._forgiven("pictures"):
            self.run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})

    def log_confusion(self, head: str, target: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> None:
        """W&B's interactive confusion matrix of ``target`` (N,) and ``predicted`` (N,) class indices."""
        with self._forgiven("confusion matrix"):
            plot = wandb.plot.confusion_matrix(
                y_true=target.tolist(), preds=predicted.tolist(), class_names=class_names, title=head
            )
            self.run.log({f"confusion_matrix/{head}": plot})

    def log_predictions(
        self, head: str, clip_ids: Sequence[str], target: np.ndarray, scores: np.ndarray, class_names: list[str]
    ) -> None:
        """A table of the clips: truth, prediction and its score, whether it is right.

        Args:
            head: What is predicted.
            clip_ids: N names.
            target: (N,) class indices with -1 for unlabelled, or (N, C) zeros and ones with rows of -1 for unlabelled.
            scores: (N, C), higher is more likely.
            class_names: C names.
        """
        if len(clip_ids) > _TABLE_ROWS:
            logger.info("W&B: the table of predictions holds the first %d of %d clips", _TABLE_ROWS, len(clip_ids))
        best = scores.argmax(axis=1)
        table = wandb.Table(columns=["clip", "truth", "predicted", "score", "right"])
        for k, clip_id in enumerate(clip_ids[:_TABLE_ROWS]):
            true = [target[k]] if target.ndim == 1 else np.flatnonzero(target[k] > 0)
            known = target[k].min() >= 0
            names = ", ".join(class_names[i] for i in true) if known else None
            score = float(scores[k, best[k]])
            table.add_data(clip_id, names, class_names[best[k]], score, bool(best[k] in true) if known else None)
        with self._forgiven("predictions"):
            self.run.log({f"predictions/{head}": table})

    def log_clips(self, name: str, waveforms: np.ndarray, frames: np.ndarray, sample_rate: int, ids: list[str]) -> None:
        """A table of clips to play: ``waveforms`` (B, S) in -1..1, ``frames`` (B, 3, T, H, W) uint8."""
        folder = self.folder / "clips"
        with self._forgiven("clips"):
            folder.mkdir(exist_ok=True)
            table = wandb.Table(columns=["clip", "video", "audio"])
            for number, (waveform, clip, clip_id) in enumerate(zip(waveforms, frames, ids, strict=True)):
                sound, film = folder / f"{number}.wav", folder / f"{number}.mp4"
                with atomic_path(sound) as temporary:
                    wavfile.write(temporary, sample_rate, (waveform.clip(-1, 1) * 32767).astype(np.int16))
                pictures = clip.transpose(1, 2, 3, 0)
                odd = [(0, size % 2) for size in pictures.shape[1:3]]  # H.264 takes even sizes
                pictures = np.pad(pictures, [(0, 0), *odd, (0, 0)], mode="edge")
                fps = max(0.01, len(pictures) * sample_rate / len(waveform))
                with atomic_path(film) as temporary:
                    write_mp4(temporary, pictures, waveform.astype(np.float32), fps=fps, sample_rate=sample_rate)
                table.add_data(clip_id, wandb.Video(str(film), caption=clip_id), wandb.Audio(str(sound)))
            self.run.log({name: table})

    @contextmanager
    def _forgiven(self, what: str) -> Iterator[None]:
        """Warns once of what W&B does not take, and goes on."""
        try:
            yield
        except WANDB_ERRORS as error:
            if what not in self._refused:
                logger.warning("W&B did not take the %s: %s", what, _words(error))
            self._refused.add(what)

    def finish(self, exit_code: int = 0) -> None:
        """Ends the run; of an offline one the line is logged that sends it."""
        folder = Path(self.run.settings.sync_dir).resolve()
        with Meter("W&B: sending the rest"), self._forgiven("end of the run"):
            self.run.finish(exit_code=exit_code)
        if self.offline:
            here = Path.cwd()
            shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
            logger.info("send the run to W&B: wandb sync %s", shlex.quote(str(shown)))


def _init(mode: Literal["online", "offline"], given: dict[str, Any]) -> Any:
    with patch.object(sys, "argv", hidden(sys.argv)):  # which W&B logs
        return _start(mode, given)


def _start(mode: Literal["online", "offline"], given: dict[str, Any]) -> Any:
    settings = wandb.Settings(silent=True, console="off")
    if mode == "online":
        try:
            with Meter("W&B: waiting for the server"):
                return wandb.init(mode="online", settings=settings, **given)
        except WANDB_ERRORS as error:
            end_failed_run()
            logger.warning("W&B refuses the run (%s): it goes on offline", _words(error))
    try:
        return wandb.init(mode="offline", settings=settings, **given)
    except WANDB_ERRORS as error:
        raise ValueError(f"wandb: {_words(error)}; --wandb.mode disabled does without") from error


def _words(error: Exception) -> str:
    return str(hidden(" ".join(str(error).split())))


def end_failed_run() -> None:
    """Ends the W&B run that a run which failed left open: a further run of this process would be logged into it."""
    if wandb.run is not None:
        wandb.run.finish(exit_code=1)
