"""Models as W&B artifacts: a run logs its own, and one that starts from it says so."""

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import wandb

from avssl.files import DamagedError, atomic_path, seal, unseal
from avssl.tracking.tracker import Tracker
from avssl.tracking.wandb_run import WANDB_ERRORS

logger = logging.getLogger(__name__)

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
