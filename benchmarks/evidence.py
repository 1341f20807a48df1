"""MAST against AST from scratch, at equal passes over the data and at equal time: same data, settings, honest splits.

    python benchmarks/evidence.py --esc10 PATH --fsdd PATH --grid PATH --plan
    python benchmarks/evidence.py --esc10 PATH --fsdd PATH --grid PATH --output benchmarks/results
    python benchmarks/evidence.py --output benchmarks/results --table

ESC-10 by its five official folds, FSDD with each speaker held out in turn, GRID's digits by three draws of the test
clips. First the training steps of both are timed in turn, and decoding: ``--minutes`` of processor time, divided evenly
among the sets, give the passes over the data of both models. At equal time MAST gets more passes, by the ratio of their
seconds a step; AST's run is the same. The plan is kept in the folder of the runs. Each model has its own learning rate
for each set, the best in runs of half the passes on a validation part of the first split's training clips; where the
best is at the edge of the rates tried, the next one is tried, too. Test clips have no part in it. "random" is the same
model without training, and a linear probe on its features. Finished runs are kept: the command continues where it was
stopped.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import Cell, measure_all, measured, published
from common import describe_machine, write_result
from evidence_plan import RANDOM_SPLITS, TUNING_SHARE, Plan, best_rate, make_plan, plan_lines, untried
from evidence_setup import COMMON, MELS, MODELS, SETS, arguments, sizes
from result_tables import evidence_table

from mast.files import atomic_path

Rates = dict[tuple[str, str], float]


def tuning_cell(name: str, model: str, lr: float, root: Path, plan: Plan) -> Cell:
    """A learning rate on validation clips of the first split."""
    options = [*arguments(name, model, SETS[name].first, root, plan.precision), "--data.val_fraction", "0.2"]
    options += ["--head", "full", "--optim.epochs", str(plan.epochs[name] * TUNING_SHARE), "--optim.lr", str(lr)]
    about = {"data": name, "model": model, "kind": "tune", "split": SETS[name].first, "lr": lr}
    return Cell(f"{name}:{model}:lr={lr:g}", tuple(options), about)


def tune(
    roots: dict[str, Path], plan: Plan, runs: Path, run: Callable[[list[Cell]], int], keep: Callable[[Any], None]
) -> tuple[Rates, int]:
    """Searches the learning rate of every set and model; what was found, and how many runs failed."""
    scores: dict[tuple[str, str], dict[float, tuple[float, float]]] = {}
    for name in roots:
        scores |= {(name, model): {} for model in MODELS}
    failed, pending = 0, True
    while pending:
        pending = False
        cells = []
        for (name, model), found in scores.items():
            cells += [tuning_cell(name, model, lr, roots[name], plan) for lr in untried(found)]
        waiting = [cell for cell in cells if measured(cell, runs) is None]
        failed += run(waiting) if waiting else 0
        for cell in cells:
            if row := measured(cell, runs):
                keep(row)
                head = f"val/{SETS[row['data']].head}"
                score = row["validation"][f"{head}/top1"], row["validation"][f"{head}/mAP"]
                scores[row["data"], row["model"]][row["lr"]] = score
                pending = True
    return {key: best_rate(found) for key, found in scores.items() if found and not untried(found)}, failed


def test_cells(roots: dict[str, Path], plan: Plan, rates: Rates) -> list[Cell]:
    """The runs that are compared, and the untrained models on the first splits.

    All sets' first splits come before the second ones, so that what is stopped early has something of everything.
    """
    cells = []
    for number in range(max(len(SETS[name].splits) for name in roots)):
        for name, root in roots.items():
            if number < len(SETS[name].splits):
                split = list(SETS[name].splits)[number]
                cells += _split_cells(name, split, root, plan, rates, random=number < RANDOM_SPLITS)
    return sorted(cells, key=lambda cell: cell.about["kind"] == "random")


def _split_cells(name: str, split: str, root: Path, plan: Plan, rates: Rates, random: bool) -> list[Cell]:
    cells = []
    for model in MODELS:
        options = arguments(name, model, split, root, plan.precision)
        about = {"data": name, "model": model, "split": split}
        budgets = {"passes": plan.epochs[name]} | ({"time": plan.longer(name)} if model == "mast" else {})
        if (lr := rates.get((name, model))) is not None:
            for budget, passes in budgets.items():
                full = (*options, "--head", "full", "--optim.epochs", str(passes), "--optim.lr", str(lr))
                what = {"kind": "trained", "lr": lr, "budget": budget, "passes": passes}
                cells.append(Cell(f"{name}:{model}-{budget}:{split}", full, about | what))
        if random:
            cells.append(
                Cell(f"{name}:{model}-random:{split}", (*options, "--head", "linear"), about | {"kind": "random"})
            )
    return cells


def keep_picture(row: dict[str, Any], runs: Path, output: Path) -> None:
    """Copies the t-SNE of a set's first split beside the result."""
    data = SETS[row["data"]]
    source = runs / row["cell"].replace(":", "-") / "run" / "pictures" / f"tsne-{data.head}.png"
    if row.get("budget") == "passes" and row["split"] == data.first and source.is_file():
        with atomic_path(output / f"evidence_{row['data']}_{row['model']}_tsne.png") as temporary:
            shutil.copyfile(source, temporary)


def arguments_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"folder of {name}; left out without it")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of the runs and of the plan")
    parser.add_argument("--minutes", type=float, default=60, help="processor time of everything together")
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], default="32-true", help="bf16-mixed: processors with bfloat16"
    )
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument("--only", nargs="+", default=[""], help="how names of test runs begin: esc10:mast-time")
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
        print(evidence_table(json.loads((args.output / "evidence.json").read_text())))
        return 0
    roots = {name: getattr(args, name) for name in SETS if getattr(args, name)}
    if not roots:
        parser.error(f"give the folder of a data set: {', '.join(f'--{name}' for name in SETS)}")
    try:
        plan = make_plan(roots, args.minutes, args.precision, args.runs / "plan.json")
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(plan_lines(plan, list(roots))), flush=True)
    if args.plan:
        return 0

    result: dict[str, Any] = {"benchmark": "evidence", "machine": describe_machine(), "models": sizes()}
    settings = {"minutes": args.minutes, "mels": MELS, "common": COMMON, "batch": {k: v.batch for k, v in SETS.items()}}
    result |= {"settings": settings, "plan": asdict(plan), "rows": []}

    def keep(row: dict[str, Any]) -> None:
        others = [each for each in result["rows"] if each["cell"] != row["cell"]]
        result["rows"] = sorted([*others, published(row)], key=lambda each: each["cell"])
        if args.output:
            keep_picture(row, args.runs, args.output)
            write_result(args.output, "evidence", result)

    def run(what: str) -> Callable[[list[Cell]], int]:
        return lambda cells: measure_all(cells, args.runs, args.parallel, keep, what)

    rates, failed = tune(roots, plan, args.runs, run("learning rates"), keep)
    cells = [cell for cell in test_cells(roots, plan, rates) if any(cell.name.startswith(start) for start in args.only)]
    for cell in cells:
        if row := measured(cell, args.runs):
            keep(row)  # of earlier calls
    failed += run("splits")(cells)
    print(f"\n{evidence_table(result)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
