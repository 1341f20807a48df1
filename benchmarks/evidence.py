"""MAST against AST from scratch: same data, same passes over it, same augmentation and optimizer, honest splits.

    python benchmarks/evidence.py --esc10 PATH --fsdd PATH --grid PATH --plan
    python benchmarks/evidence.py --esc10 PATH --fsdd PATH --grid PATH --parallel 2 --output benchmarks/results
    python benchmarks/evidence.py --output benchmarks/results --table

ESC-10 by its five official folds, FSDD with each speaker held out in turn, GRID's digits by three draws of the test
clips. ``--minutes`` of processor time are divided evenly among the data sets; steps and decoding are timed first, the
two models in turn, and the passes over the data that fit are the plan, which is kept in the folder of the runs. Each
model has its own learning rate for each set: the best of LEARNING_RATES in runs of half the length on a validation part
of the first split's training clips; test clips have no part in it. "random" is the same model without training, and a
linear probe on its features. Finished runs are kept: the command continues where it was stopped.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import Cell, measure_all, measured, published
from common import describe_machine, write_result
from evidence_plan import LEARNING_RATES, RANDOM_SPLITS, TUNING_SHARE, Plan, make_plan, plan_lines
from evidence_setup import COMMON, MELS, MODELS, SETS, arguments, sizes

from mast.files import atomic_path


def tuning_cells(roots: dict[str, Path], plan: Plan) -> list[Cell]:
    """Every learning rate of every model on validation clips of the first split."""
    cells = []
    for name, root in roots.items():
        for model in MODELS:
            options = [*arguments(name, model, SETS[name].first, root), "--data.val_fraction", "0.2", "--head", "full"]
            options += ["--optim.epochs", str(plan.epochs[name] * TUNING_SHARE)]
            for lr in LEARNING_RATES:
                about = {"data": name, "model": model, "kind": "tune", "split": SETS[name].first, "lr": lr}
                cells.append(Cell(f"{name}:{model}:lr={lr:g}", (*options, "--optim.lr", str(lr)), about))
    return cells


def best_rates(cells: Sequence[Cell], runs: Path) -> dict[tuple[str, str], float]:
    """The learning rate of the best validation for each set and model whose runs are all there; ties: the lowest."""
    scores: dict[tuple[str, str], dict[float, float]] = {}
    for cell in cells:
        if row := measured(cell, runs):
            score = row["validation"][f"val/{SETS[row['data']].head}/top1"]
            scores.setdefault((row["data"], row["model"]), {})[row["lr"]] = score
    whole = {key: found for key, found in scores.items() if len(found) == len(LEARNING_RATES)}
    return {key: max(sorted(found), key=found.__getitem__) for key, found in whole.items()}


def test_cells(roots: dict[str, Path], plan: Plan, rates: dict[tuple[str, str], float]) -> list[Cell]:
    """The runs that are compared, split by split, and the untrained models on the first splits."""
    cells = []
    for name, root in roots.items():
        for number, split in enumerate(SETS[name].splits):
            for model in MODELS:
                options = arguments(name, model, split, root)
                about = {"data": name, "model": model, "split": split}
                if (lr := rates.get((name, model))) is not None:
                    full = (*options, "--head", "full", "--optim.epochs", str(plan.epochs[name]), "--optim.lr", str(lr))
                    cells.append(Cell(f"{name}:{model}:{split}", full, about | {"kind": "trained", "lr": lr}))
                if number < RANDOM_SPLITS:
                    random = (*options, "--head", "linear")
                    cells.append(Cell(f"{name}:{model}-random:{split}", random, about | {"kind": "random"}))
    return cells


def table(result: dict[str, Any]) -> str:
    """Markdown: a line a set and model, means over splits with their deviation, and the differences split by split."""
    lines = [
        "| data | model | top-1 | lr | NMI | silhouette | random: probe | random: NMI | s/step | MACs | parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, data in SETS.items():
        scores: dict[str, dict[str, float]] = {}
        for model in MODELS:
            mine = [row for row in result["rows"] if (row["data"], row["model"]) == (name, model)]
            full = [row for row in mine if row["kind"] == "trained"]
            if full:
                random = [row for row in mine if row["kind"] == "random"]
                lines.append(f"| {name} | {model} | {' | '.join(_cells(result, name, model, full, random))} |")
            for row in full:
                scores.setdefault(row["split"], {})[model] = row["metrics"][f"{data.head}/top1"]
        both = [found["mast"] - found["ast"] for found in scores.values() if len(found) == len(MODELS)]
        if both:
            better = f"better in {sum(value > 0 for value in both)} of {len(both)} splits"
            lines.append(f"| {name} | mast - ast | {_spread(both, 100, ' points')}, {better} | | | | | | | | |")
    return "\n".join(lines)


def _cells(
    result: dict[str, Any], name: str, model: str, full: list[dict[str, Any]], random: list[dict[str, Any]]
) -> list[str]:
    head, size = SETS[name].head, result["models"][name][model]

    def clusters(rows: list[dict[str, Any]], key: str) -> str:
        return _spread([row["clustering"][head][key] for row in rows])

    return [
        _spread([row["metrics"][f"{head}/top1"] for row in full], 100, " %"),
        f"{full[0]['lr']:g}",
        clusters(full, "NMI"),
        clusters(full, "silhouette"),
        _spread([row["metrics"][f"{head}/top1"] for row in random], 100, " %"),
        clusters(random, "NMI"),
        f"{result['plan']['steps'][name][model]:.3f}",
        f"{size['macs'] / 1e6:.0f} M",
        f"{size['parameters'] / 1e6:.2f} M",
    ]


def _spread(values: Sequence[float], scale: float = 1, unit: str = "") -> str:
    if not values:
        return ""
    digits = 1 if scale > 1 else 2
    spread = f" +- {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{unit}{spread}"


def keep_picture(row: dict[str, Any], runs: Path, output: Path) -> None:
    """Copies the t-SNE of a set's first split beside the result."""
    data = SETS[row["data"]]
    source = runs / row["cell"].replace(":", "-") / "run" / "pictures" / f"tsne-{data.head}.png"
    if row["kind"] == "trained" and row["split"] == data.first and source.is_file():
        with atomic_path(output / f"evidence_{row['data']}_{row['model']}_tsne.png") as temporary:
            shutil.copyfile(source, temporary)


def arguments_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"folder of {name}; left out without it")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of the runs and of the plan")
    parser.add_argument("--minutes", type=float, default=60, help="processor time of everything together")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--only", nargs="+", metavar="CELL", default=[""], help="cells, or how their names begin: esc10:mast"
    )
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--output", type=Path, help="folder for the JSON result and pictures; none by default")
    parser.add_argument("--table", action="store_true", help="print the table of the result in --output and stop")
    return parser


def main() -> int:
    parser = arguments_of()
    args = parser.parse_args()
    if args.table:
        if args.output is None:
            parser.error("--table needs --output, the folder of evidence.json")
        print(table(json.loads((args.output / "evidence.json").read_text())))
        return 0
    roots = {name: getattr(args, name) for name in SETS if getattr(args, name)}
    if not roots:
        parser.error(f"give the folder of a data set: {', '.join(f'--{name}' for name in SETS)}")
    plan = make_plan(roots, args.minutes, args.runs / "plan.json")
    print("\n".join(plan_lines(plan, list(roots))), flush=True)
    if args.plan:
        return 0

    result: dict[str, Any] = {"benchmark": "evidence", "machine": describe_machine(), "models": sizes()}
    result |= {"settings": {"minutes": args.minutes, "mels": MELS, "common": COMMON}, "plan": asdict(plan), "rows": []}

    def keep(row: dict[str, Any]) -> None:
        others = [each for each in result["rows"] if each["cell"] != row["cell"]]
        result["rows"] = sorted([*others, published(row)], key=lambda each: each["cell"])
        if args.output:
            keep_picture(row, args.runs, args.output)
            write_result(args.output, "evidence", result)

    tuning = tuning_cells(roots, plan)
    for cell in [*tuning, *test_cells(roots, plan, best_rates(tuning, args.runs))]:
        if row := measured(cell, args.runs):
            keep(row)  # of earlier calls

    def needed(cell: Cell) -> bool:
        model = cell.name.rpartition(":")[0] + ":"
        return any(model.startswith(start) or start.startswith(model) for start in args.only)

    failed = measure_all([cell for cell in tuning if needed(cell)], args.runs, args.parallel, keep, "learning rates")
    tests = test_cells(roots, plan, best_rates(tuning, args.runs))
    wanted = [cell for cell in tests if any(cell.name.startswith(start) for start in args.only)]
    failed += measure_all(wanted, args.runs, args.parallel, keep, "splits")
    print(f"\n{table(result)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
