"""Cross-validation: fine-tuning once per fold and seed, and what the folds say together."""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import distributed

from avssl.commands.finetune import finetune, resolve_checkpoint
from avssl.config import CrossvalConfig, FinetuneConfig, to_dict
from avssl.errors import is_of_machine
from avssl.evaluation.result import read_result
from avssl.files import DamagedError
from avssl.locks import hold_for_all
from avssl.pipelines.crossval_report import report_crossval
from avssl.pipelines.folds import make_folds
from avssl.pipelines.initialization import complete_finetuning, read_finetuning_start
from avssl.progress import Meter
from avssl.tracking import end_failed_run
from avssl.training.run import check_same
from avssl.urls import hide_credentials

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a cross-validation: a fold, a seed, and the config of its fine-tuning."""

    fold: str
    seed: int
    config: FinetuneConfig

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        assert self.config.output is not None
        return self.config.output


def crossval(config: CrossvalConfig) -> dict[str, Any]:
    """Fine-tunes on every fold and aggregates; what is finished already is kept.

    A fold that fails is reported, and the others go on. An error of the machine, such as a full disk, ends the run, and
    so does the first failure of several processes, which would wait for each other: the same command continues it.

    Returns:
        What ``result.json`` holds, with ``finished`` and ``failed`` (fold, seed and error of each failed run);
        ``finished`` is False when a signal ended a fold early.

    Raises:
        ValueError: contradictory settings, or a folder with runs of other settings; every fold failed.
        HeldError: another cross-validation writes to the folder.
        OSError, MemoryError: the disk is full, or another error that is not the fold's.
    """
    if config.resume not in ("auto", "none"):
        raise ValueError(f"resume: a cross-validation takes auto or none, not the checkpoint {config.resume}")
    checkpoint = resolve_checkpoint(config)
    config = complete_finetuning(config, read_finetuning_start(config, checkpoint))
    start = "pretrained" if checkpoint else "random"
    folder = config.output or Path("runs") / f"crossval-{Path(config.data.name).stem}-{config.head}-{start}"
    with hold_for_all(folder, "cross-validation"):
        return _crossval(config, checkpoint, folder)


def _crossval(config: CrossvalConfig, checkpoint: Path | None, folder: Path) -> dict[str, Any]:
    fresh = not folder.exists()
    cells = list(make_cells(replace(config, checkpoint=str(checkpoint or "none")), folder))
    results = {k: result for k, cell in enumerate(cells) if (result := finished_result(cell)) is not None}
    if results:
        logger.info("%d of %d runs are finished already and kept", len(results), len(cells))
    failed: list[dict[str, Any]] = []
    with Meter("cross-validation", total=len(cells), initial=len(results), unit="run") as meter:
        for k, cell in enumerate(cells):
            if k in results:
                continue
            meter.note(f"{cell.fold}, seed {cell.seed}")
            try:
                result = finetune(cell.config)
            except Exception as error:
                if _world_size() > 1 or is_of_machine(error):
                    end_failed_run()
                    raise
                logger.exception("%s, seed %d failed", cell.fold, cell.seed)
                end_failed_run()
                told = hide_credentials(f"{type(error).__name__}: {error}")
                failed.append({"fold": cell.fold, "seed": cell.seed, "error": told})
            else:
                if not result["finished"]:
                    return {"finished": False}
                results[k] = result
            meter.update()
    if not results:
        if fresh and not any(cell.folder.exists() for cell in cells):  # no fold began: nothing stands in the next's way
            shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"all {len(cells)} folds failed, the first with {failed[0]['error']}")
    if _world_size() > 1 and distributed.get_rank() != 0:
        return {"finished": True, "failed": failed}
    runs = [
        {"fold": cells[k].fold, "seed": cells[k].seed, "folder": cells[k].folder.name, "result": results[k]}
        for k in sorted(results)
    ]
    return {"finished": True, **report_crossval(config, folder, runs, failed)}


def make_cells(config: CrossvalConfig, folder: Path) -> Iterator[Cell]:
    """Every fold of every seed with its own config.

    Raises:
        ValueError: a seed stands twice; or what :func:`make_folds` raises.
    """
    seeds = [config.seed] if config.seeds is None else config.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: give each once, and at least one, got {seeds}")
    values = {field.name: getattr(config, field.name) for field in fields(FinetuneConfig)}
    for seed in seeds:
        for fold in make_folds(config.data, config.folds, config.group_by, seed, folder / "folds"):
            output = folder / f"{fold.slug}-seed-{seed}"
            group = config.wandb.group or os.environ.get("WANDB_RUN_GROUP") or folder.name
            wandb = replace(config.wandb, name=f"{config.wandb.name or folder.name}/{output.name}", group=group)
            yield Cell(
                fold.name,
                seed,
                FinetuneConfig(**values | {"data": fold.data, "seed": seed, "output": output, "wandb": wandb}),
            )


def finished_result(cell: Cell) -> dict[str, Any] | None:
    """The result of an earlier run of ``cell``; None where there is none, or it shall not be kept, or is damaged.

    Raises:
        ValueError: the folder holds a run of other settings.
    """
    if cell.config.resume == "none" or not (cell.folder / "config.yaml").is_file():
        return None
    check_same(cell.folder, cell.config)
    path = cell.folder / "result.json"
    if not path.is_file():
        return None
    try:
        result = read_result(path)
        before, now = _step_clips(result["config"]), _step_clips(to_dict(cell.config))
    except DamagedError as error:
        logger.warning("%s: running %s, seed %d again", error, cell.fold, cell.seed)
        return None
    except (KeyError, TypeError) as error:
        logger.warning("%s: is no result of this version (%r): running it again", path, error)
        return None
    if cell.config.head == "full" and None not in (before, now) and before != now:
        raise ValueError(
            f"{cell.folder} was trained with {before} clips a step, not {now}: choose another --output, or give "
            "--resume none to start over (the old folder is kept)"
        )
    scored = str(result.get("clip_protocol"))
    if " clips of " in scored and " averaged" not in scored:  # earlier versions averaged logits, and did not say so
        logger.warning("%s: %s, of which logits were averaged: judging %s anew", path, scored, cell.fold)
        return None
    return result


def _step_clips(config: dict[str, Any]) -> int | None:
    """Clips of a step over all processes, their number being as configured; None where that is "auto"."""
    optim, runtime = config["optim"], config["runtime"]
    if not str(runtime["devices"]).isdecimal():
        return None
    return int(optim["batch_size"] * int(runtime["devices"]) * runtime["num_nodes"])


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
