"""What pretraining gives: the recipes of the demo and of GRID with several losses, beside random weights.

    python tools/cache.py --data grid --data.root PATH --output caches/grid --short_side 72
    python benchmarks/pretraining.py --grid caches/grid --output benchmarks/results
    python benchmarks/pretraining.py --output benchmarks/results --table

Each run is the tools' own: ``tools/pretrain.py`` by its recipe, or by contrast of the pair alone, without the second
view of the audio and the augmentation that goes with it; then the evaluations of ``tools/evaluate.py`` on the test
split, and on the demo full fine-tuning. A seed is that of the demo's videos, of the weights and of the order of the
clips. "random" is the same audio encoder without pretraining. Each row says its revision. Finished runs are kept: the
command continues where it was stopped.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import ALONE, ROOT, UNTRACKED, usage
from common import describe_machine, publish
from result_tables import localization_table, pretraining_table, robustness_table

from avssl.evaluation.result import read_result
from mast.files import atomic_path

PAIR = [{"name": "infonce"}, {"name": "vicreg", "weight": 0.5, "projection": "infonce"}]
# Without the augmentation that changes what a source sounds like.
AS_IT_IS = ["--augment.spec_warp", "0", "--augment.mix", "0", "--augment.noise_db", "none", "--augment.gain_db", "3"]
AS_IT_IS += ["--augment.time_mask", "0", "--augment.freq_mask", "0"]
# Options over the recipe.
LOSSES: dict[str, list[str]] = {
    "recipe": [],
    "contrast alone": ["--objectives", json.dumps(PAIR), *AS_IT_IS],
    "infonce alone": ["--objectives", json.dumps(PAIR[:1]), *AS_IT_IS],
}
RANDOM = "random"
EVALUATIONS = ("retrieval", "probe", "few_label", "clustering", "robustness")


@dataclass(frozen=True)
class DataSet:
    """Where losses are compared.

    Attributes:
        recipe: Name of its files in configs/pretrain and configs/finetune.
        data: Options of all of its runs.
        labelled: Options of the runs that read labels.
        seeds: Of the runs.
        evaluations: Beside EVALUATIONS.
        full: Whether all weights are fine-tuned, too.
    """

    recipe: str
    data: Callable[[int], list[str]]
    labelled: tuple[str, ...]
    seeds: tuple[int, ...]
    evaluations: tuple[str, ...] = ()
    full: bool = False


def data_sets(args: argparse.Namespace) -> dict[str, DataSet]:
    """The demo, and GRID where its folder is given."""
    sets = {}
    if args.demo_seeds:
        options = lambda seed: ["--data.options", json.dumps({"seed": seed})]  # noqa: E731
        sets["demo"] = DataSet("demo", options, (), tuple(args.demo_seeds), ("localization",), full=True)
    if args.grid:
        labelled = ("--data.heads", "[digit, colour]", "--few_label_draws", "20")
        sets["grid"] = DataSet("grid", lambda seed: ["--data", str(args.grid)], labelled, tuple(args.grid_seeds))
    return sets


def measure(args: argparse.Namespace, name: str, data: DataSet, loss: str, seed: int) -> dict[str, Any]:
    """Runs one loss, or random weights, with one seed; reads the row of an earlier call where there is one."""
    folder = args.runs / f"{name}-{loss.replace(' ', '-')}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    seconds = 0.0

    def run(tool: str, options: list[str], output: str) -> dict[str, Any]:
        nonlocal seconds
        options = [*options, "--seed", str(seed), *ALONE, "--output", str(folder / output)]
        options += UNTRACKED if tool != "evaluate" else []
        used = usage(tool, options, folder / f"{output}.log")
        seconds += used.ru_utime + used.ru_stime
        return read_result(folder / output / "result.json")

    recipe = ["--config", str(ROOT / f"configs/finetune/{data.recipe}.yaml"), *data.data(seed)]
    heads = list(data.labelled[:2])
    row: dict[str, Any] = {"data": name, "loss": loss, "seed": seed}
    if loss == RANDOM:
        start = "none"
        found = run("finetune", [*recipe, *heads, "--checkpoint", start, "--head", "linear"], "probe")
        row["metrics"] = {f"probe/{key}": value for key, value in found["metrics"].items()}
        row["metrics"] |= {
            f"{head}/{key}": value for head, values in found["clustering"].items() for key, value in values.items()
        }
    else:
        start = str(folder / "pretrain")
        found = pretrained = run("pretrain", _pretraining(args, data, loss, seed), "pretrain")
        row["objectives"] = pretrained["config"]["objectives"]
        row["passes"] = pretrained["config"]["optim"]["epochs"]
        row["metrics"] = run("evaluate", _evaluation(data, start), "evaluate")["metrics"]
    if data.full:
        row["full"] = run("finetune", [*recipe, *heads, "--checkpoint", start, "--head", "full"], "full")["metrics"]
    row |= {"revision": found["provenance"]["revision"], "processor_seconds": round(seconds)}
    with atomic_path(done) as temporary:
        temporary.write_text(json.dumps(row))
    return row


def _pretraining(args: argparse.Namespace, data: DataSet, loss: str, seed: int) -> list[str]:
    options = ["--config", str(ROOT / f"configs/pretrain/{data.recipe}.yaml"), *data.data(seed), *LOSSES[loss]]
    if data.recipe == "grid" and args.grid_epochs:
        options += ["--optim.epochs", str(args.grid_epochs)]
    return options


def _evaluation(data: DataSet, checkpoint: str) -> list[str]:
    evaluations = ", ".join((*EVALUATIONS, *data.evaluations))
    return ["--checkpoint", checkpoint, "--evaluations", f"[{evaluations}]", *data.labelled]


def key_of(row: dict[str, Any]) -> tuple[str, int, int]:
    """What a row is of; their order is that of the result."""
    return row["data"], [*LOSSES, RANDOM].index(row["loss"]), row["seed"]


def tables(result: dict[str, Any]) -> str:
    """All that is shown of a result."""
    made = (pretraining_table, localization_table, robustness_table)
    return "\n\n".join(table for make in made if (table := make(result)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, help="cache or folder of GRID; left out without it")
    parser.add_argument("--grid-epochs", type=int, help="default: those of the recipe")
    parser.add_argument("--grid-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--demo-seeds", type=int, nargs="*", default=[0, 1, 2], help="none leaves the demo out")
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES, RANDOM], default=[*LOSSES, RANDOM])
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"), help="folder of the runs")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--output", type=Path, help="folder for the JSON result; none by default")
    parser.add_argument("--table", action="store_true", help="print the tables of the result in --output and stop")
    args = parser.parse_args()
    if args.table:
        if args.output is None:
            parser.error("--table needs --output, the folder of pretraining.json")
        print(tables(json.loads((args.output / "pretraining.json").read_text())))
        return 0
    sets = data_sets(args)
    jobs = [(name, data, loss, seed) for name, data in sets.items() for seed in data.seeds for loss in args.losses]
    # Also those of earlier calls with other sets, losses or seeds.
    rows: list[dict[str, Any]] = [json.loads(file.read_text()) for file in args.runs.glob("*/measured.json")]
    failed, machine = 0, describe_machine()
    with ThreadPoolExecutor(args.parallel) as pool:
        futures = {pool.submit(measure, args, *job): job for job in jobs}
        for future in as_completed(futures):
            name, _, loss, seed = futures[future]
            try:
                row = future.result()
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                failed += 1
                print(f"{name}, {loss}, seed {seed}: {error}", flush=True)
                continue
            rows = [each for each in rows if key_of(each) != key_of(row)] + [row]
            rows.sort(key=key_of)
            publish(args, "pretraining", "pretraining", machine, rows=rows)
    print(f"\n{tables({'rows': rows})}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
