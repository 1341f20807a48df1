"""What pretraining is worth with few labels: full fine-tuning on a share of them, pretrained against random start.

    python benchmarks/few_labels.py --demo-checkpoint runs/demo/pretrain --output benchmarks/results
    python benchmarks/few_labels.py --grid PATH --grid-checkpoint runs/pretrain-grid --parallel 2 --output ...
    python benchmarks/few_labels.py --output benchmarks/results --table

1, 5, 10, 50 and 100 % of the training labels, the same share of every class and at least one clip of each, drawn three
times; both starts train on the same draw, for the same number of steps (``--passes`` over the share, but no fewer than
``--steps``), with the same settings, and on the same architecture. Finished runs are kept: the command continues where
it was stopped.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from cells import Cell, measure_all, measured, published
from common import describe_machine, settings_of, write_result
from result_tables import FEW_LABELS, full_few_label_lines, markdown

import mast
from avssl.training.initialization import FRONTEND

SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)
# The head, the training clips, and what a run on the set takes besides.
SETS: dict[str, tuple[str, int, list[str]]] = {
    "demo": ("event", 288, []),
    "grid": ("digit", 700, ["--data.heads", "[digit]", "--augment.spec_warp", "0.3"]),
}


def architecture(checkpoint: Path) -> list[str]:
    """Options of a random encoder like the one that was pretrained.

    Raises:
        FileNotFoundError: the run has no exported encoder: it is not finished.
    """
    folder = checkpoint / "audio_encoder"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: give the folder of a finished pretraining run")
    loaded = mast.from_pretrained(folder)
    options = {key: value for key, value in loaded.model.config.items() if key != "num_classes"}
    assert loaded.frontend is not None
    frontend = {key: value for key in FRONTEND if (value := loaded.frontend.config[key]) is not None}
    out = ["--audio.model", str(loaded.model.name), "--audio.options", json.dumps(options)]
    return [*out, *(part for key, value in frontend.items() for part in (f"--audio.{key}", str(value)))]


def cells_of(name: str, checkpoint: Path, root: Path | None, args: argparse.Namespace) -> list[Cell]:
    """Every share, draw and start of one set."""
    head, clips, options = SETS[name]
    optimizer = ["--optim.batch_size", str(args.batch), "--optim.lr", str(args.lr)]
    masks = ["--augment.time_mask", "0.1", "--augment.freq_mask", "0.1"]  # no recipe: the same on both sets
    common = [
        "--config",
        "none",
        *masks,
        "--data",
        name,
        "--head",
        "full",
        *(["--data.root", str(root)] if root else []),
        *options,
        *optimizer,
    ]
    starts = {
        "random": ["--checkpoint", "none", *architecture(checkpoint)],
        "pretrained": ["--checkpoint", str(checkpoint)],
    }
    cells = []
    for share in SHARES:
        steps = max(args.steps, math.ceil(args.passes * share * clips / args.batch))
        for draw in range(args.draws):
            for start, more in starts.items():
                about = {"data": name, "head": head, "share": share, "draw": draw, "steps": steps}
                drawn = ("--optim.max_steps", str(steps), "--data.train_fraction", str(share), "--seed", str(draw))
                settings = (*common, *more, *drawn)
                cells.append(Cell(f"{name}:{start}:{share:g}:draw{draw}", settings, about))
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo-checkpoint", type=Path, help="pretraining run on the demo set; left out without it")
    parser.add_argument("--grid-checkpoint", type=Path, help="pretraining run on GRID; left out without it")
    parser.add_argument("--grid", type=Path, help="folder of GRID, its videos")
    parser.add_argument("--runs", type=Path, default=Path("runs/few_labels"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=120, help="of a run, at least")
    parser.add_argument("--passes", type=int, default=8, help="over the share of the labels, at least")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="CELL", default=[""], help="how the names begin: demo:random:0.01")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--output", type=Path, help="folder for the JSON result; none by default")
    parser.add_argument("--table", action="store_true", help="print the table of the result in --output and stop")
    args = parser.parse_args()
    if args.table:
        if args.output is None:
            parser.error("--table needs --output, the folder of few_labels.json")
        print(markdown(FEW_LABELS, full_few_label_lines(json.loads((args.output / "few_labels.json").read_text()))))
        return 0
    if args.grid_checkpoint and not args.grid:
        parser.error("--grid-checkpoint needs --grid, the folder of its data")
    given = {"demo": args.demo_checkpoint, "grid": args.grid_checkpoint}
    cells = [
        cell
        for name, checkpoint in given.items()
        if checkpoint
        for cell in cells_of(name, checkpoint, args.grid if name == "grid" else None, args)
    ]
    if not cells:
        parser.error("give --demo-checkpoint or --grid-checkpoint")
    rows: dict[str, dict[str, Any]] = {}
    head = {"benchmark": "few_labels", "machine": describe_machine(), "settings": settings_of(args)}

    def result() -> dict[str, Any]:
        return {**head, "rows": [rows[name] for name in sorted(rows)]}

    def keep(row: dict[str, Any]) -> None:
        rows[row["cell"]] = published(row)
        if args.output:
            write_result(args.output, "few_labels", result())

    for cell in cells:
        if row := measured(cell, args.runs):
            keep(row)  # of earlier calls
    wanted = [cell for cell in cells if any(cell.name.startswith(start) for start in args.only)]
    failed = measure_all(wanted, args.runs, args.parallel, keep, "few labels")
    print(f"\n{markdown(FEW_LABELS, full_few_label_lines(result()))}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
