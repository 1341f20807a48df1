"""Cross-validates fine-tuning: once per fold and seed, with the mean, deviation and intervals of every metric.

avssl crossval --data esc50 --folds fold=1..5
avssl crossval --data fsdd --group-by speaker --head full
"""

import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import distributed

from avssl.commands.demo import text_table
from avssl.commands.finetune import finetune, resolve_checkpoint
from avssl.config import CrossvalConfig, FinetuneConfig, to_dict, to_yaml
from avssl.data.folds import make_folds
from avssl.data.splits import settle_clip_seconds
from avssl.errors import is_of_machine
from avssl.evaluation.classification import HEADLINES
from avssl.evaluation.plots import drawn, head_to_head
from avssl.evaluation.report import Table, is_share, write_report
from avssl.evaluation.result import provenance, read_result, write_result
from avssl.evaluation.statistics import Spread, pooled_rate, spreads
from avssl.files import DamagedError
from avssl.locks import hold_for_all
from avssl.progress import Meter
from avssl.tracking import end_failed_run
from avssl.training.initialization import MODALITIES, complete_finetuning, read_finetuning_start
from avssl.training.run import check_same
from avssl.urls import hide_credentials

logger = logging.getLogger(__name__)

# Metrics that are a share of the test rows: only these can be pooled over folds without the rows themselves.
RATES = ("top1", "top5")


def run(config: CrossvalConfig) -> int:
    """The command; returns the exit status: 1 where a fold failed, 130 where a signal ended the run."""
    result = crossval(config)
    if not result["finished"]:
        return 130
    for table in result.get("tables", []):
        sys.stdout.write(f"\n{text_table(table)}\n{table.note}".rstrip() + "\n")
    return 1 if result["failed"] else 0


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
    source = read_finetuning_start(config, checkpoint)
    config = complete_finetuning(config, source)
    trained = None if source is None else source.settings.clip_seconds
    config = replace(config, data=settle_clip_seconds(config.data, MODALITIES[config.modality], trained))
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


def report_crossval(
    config: CrossvalConfig, folder: Path, runs: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Aggregates ``runs``, writes the files into ``folder``, and returns the result.

    Args:
        config: The cross-validation's config.
        folder: Where the files go.
        runs: ``fold``, ``seed``, ``folder`` and ``result`` of every finished run.
        failed: ``fold``, ``seed`` and ``error`` of the others.
    """
    # A saved result has null where the run had NaN.
    metrics = [_numbers(run["result"]["metrics"]) for run in runs]
    repeats = [run["seed"] for run in runs]
    over = spreads(metrics, repeats)
    pooled = pool(metrics, repeats)
    clusters = [
        _numbers({f"{head}/{name}": value for head, values in run["result"].get("clustering", {}).items()
                  for name, value in values.items() if name not in ("classes", "count")})
        for run in runs
    ]  # fmt: skip
    over_clusters = spreads(clusters, repeats)
    means = {name: value.mean for name, value in over.items()}
    for name, (_, low, high) in pooled.items():
        means |= {f"{name}_low": low, f"{name}_high": high}
    result: dict[str, Any] = {
        "kind": f"crossval-{config.head}",
        "metrics": means,
        "spread": {name: asdict(value) for name, value in over.items()},
        "pooled": {name: dict(zip(("rate", "low", "high"), values, strict=True)) for name, values in pooled.items()},
        "clustering": {name: asdict(value) for name, value in over_clusters.items()},
        "runs": [_summary(run) for run in runs],
        "manifest": _together(runs, "manifest"),
        "clip_protocol": _together(runs, "clip_protocol"),
        "failed": list(failed),
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_result(folder / "result.json", result)
    headlines = headline_names(over)
    note = f"{len(runs)} runs: {len({run['fold'] for run in runs})} folds, seeds {sorted(set(repeats))}"
    if failed:
        note += f"; {len(failed)} more failed and do not count"
    tables = [_metrics_table("Over the runs", over, pooled, note), _runs_table(runs, metrics, headlines, failed)]
    if over_clusters:
        tables.append(_metrics_table("Clusters of the test features", over_clusters, {}, ""))
    picture = folder / "pictures" / "folds.png"
    options = {"title": "By fold, mean over seeds", "ylabel": "score"}
    folds = _by_fold(runs, metrics, headlines)
    pictures = drawn(picture, "Headline metrics by fold", head_to_head, folds, picture, **options)
    summary: dict[str, Any] = {_spoken(name): _plus_minus(over[name]) for name in headlines}
    write_report(
        folder,
        title=f"Cross-validation of {config.head} fine-tuning on {Path(config.data.name).stem}",
        summary=summary | ({"failed": len(failed)} if failed else {}),
        tables=tables,
        pictures=pictures,
        config_yaml=to_yaml(config),
        provenance=result["provenance"],
    )
    for name in headlines:
        logger.info("%s: %s over %d runs", _spoken(name), _plus_minus(over[name]), over[name].runs)
    logger.info("report: %s", folder / "report.html")
    return result | {"tables": tables}


def pool(metrics: Sequence[Mapping[str, float]], repeats: Sequence[int]) -> dict[str, tuple[float, float, float]]:
    """Rate and 95 % interval over all test rows of every metric in :data:`RATES`, by its full name ``head/metric``."""
    pooled = {}
    for name in dict.fromkeys(name for run in metrics for name in run if name.rpartition("/")[2] in RATES):
        count = f"{name.rpartition('/')[0]}/count"
        having = [(run[name], run[count], repeat) for run, repeat in zip(metrics, repeats, strict=True) if name in run]
        rates, counts, seeds = zip(*having, strict=True)
        pooled[name] = pooled_rate(rates, counts, seeds)
    return pooled


def headline_names(names: Mapping[str, Any]) -> list[str]:
    """The metric that each head is judged by: top-1, or mAP for a head with several labels a clip."""
    heads = dict.fromkeys(name.rpartition("/")[0] for name in names)
    chosen = ((f"{head}/top1", f"{head}/mAP") for head in heads)
    return [top1 if top1 in names else mean_ap for top1, mean_ap in chosen if top1 in names or mean_ap in names]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: math.nan if value is None else float(value)
        for name, value in values.items()
        if value is None or isinstance(value, int | float)
    }


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    result = run["result"]
    kept = {name: result.get(name) for name in ("metrics", "clustering", "clip_protocol", "coverage", "manifest")}
    return {name: run[name] for name in ("fold", "seed", "folder")} | kept


def _by_fold(
    runs: Sequence[dict[str, Any]], metrics: Sequence[Mapping[str, float]], headlines: Sequence[str]
) -> dict[str, dict[str, float]]:
    bars: dict[str, dict[str, float]] = {}
    for fold in dict.fromkeys(run["fold"] for run in runs):
        mine = [values for run, values in zip(runs, metrics, strict=True) if run["fold"] == fold]
        over = spreads(mine, list(range(len(mine))))
        bars[fold] = {_spoken(name): over[name].mean for name in headlines if name in over}
    return bars


def _metrics_table(
    title: str, over: Mapping[str, Spread], pooled: Mapping[str, tuple[float, float, float]], note: str
) -> Table:
    columns = ["metric", "mean", "deviation", "95 % interval of the mean", "pooled (95 % interval)", "runs"]
    rows: list[list[Any]] = []
    for name, value in over.items():
        form, low, high = ".4f", value.low, value.high
        if is_share(name):  # Student's t knows no bounds
            form, low, high = ".1%", max(low, 0.0), min(high, 1.0)
        deviation = f"{value.std:{form}}" if math.isfinite(value.std) else None
        interval = f"{low:{form}} to {high:{form}}" if math.isfinite(value.low) else None
        together = "{:.1%} ({:.1%} to {:.1%})".format(*pooled[name]) if name in pooled else None
        rows.append([name, f"{value.mean:{form}}", deviation, interval, together, value.runs])
    if not pooled:
        columns, rows = columns[:4] + columns[5:], [row[:4] + row[5:] for row in rows]
    return Table(title, columns, rows, note)


def _runs_table(
    runs: Sequence[dict[str, Any]],
    metrics: Sequence[Mapping[str, float]],
    headlines: Sequence[str],
    failed: Sequence[dict[str, Any]],
) -> Table:
    rows: list[list[Any]] = []
    for run, values in zip(runs, metrics, strict=True):
        scores = [f"{values[name]:.1%}" if name in values else "" for name in headlines]
        rows.append([run["fold"], run["seed"], *scores, run["folder"]])
    for run in failed:
        rows.append([run["fold"], run["seed"], *([""] * len(headlines)), f"failed: {run['error']}"])
    return Table("Runs", ["fold", "seed", *map(_spoken, headlines), "folder"], rows)


def _spoken(name: str) -> str:
    """ "sound top-1" for "sound/top1"."""
    head, _, metric = name.rpartition("/")
    return f"{head} {HEADLINES[metric]}"


def _together(runs: Sequence[dict[str, Any]], key: str) -> str:
    """What the results of the runs say under ``key``, each once: what another cross-validation is compared by."""
    return ", ".join(sorted({str(run["result"].get(key)) for run in runs}))


def _plus_minus(value: Spread) -> str:
    return f"{value.mean:.1%}" + (f" \N{PLUS-MINUS SIGN} {100 * value.std:.1f}" if math.isfinite(value.std) else "")
