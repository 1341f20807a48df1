"""Does pretraining pay? Pretrain on sets, fine-tune on sets, against random weights, with few labels and with all.

    python benchmarks/transfer.py --rows demo-sources demo --columns demo-sources demo --plan
    python benchmarks/transfer.py --rows demo-sources demo grid --columns demo-sources demo grid esc10 fsdd \\
        --grid PATH --esc10 PATH --fsdd PATH --parallel 2 --output benchmarks/results
    python benchmarks/transfer.py --recipe plain "--objectives '[{name: infonce}]'" --recipe recipe "" ...
    python benchmarks/transfer.py --output benchmarks/results --table
    python benchmarks/transfer.py --output benchmarks/results --label clips --plot docs/clips.png

Every row is a set that is pretrained on with its own recipe, or with each ``--recipe`` over it; every column one that
is fine-tuned on, with a linear and a full head, on shares of the labels. Random weights are of the same architecture,
and train on the same draw of labels for as many steps. A draw is a seed of everything, and the next fold, speaker or
test clips where a set has several; groups (speakers, sources, recordings) are on one side of every split. Checkpoints
and learning rates are chosen in validation, test clips have no part in that. Differences are paired clip by clip,
with 95 % intervals over draws and groups of clips, p-values corrected for all comparisons (Holm). Beside them:
retrieval, alignment, uniformity and rank, and how well a linear probe tells who a clip is of. Finished runs are kept:
the command continues where it was stopped, and its JSON is written after every run.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cells import ALONE, UNTRACKED, Cell, measure_all, measured, published, usage
from common import describe_machine, settings_of, write_result
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter
from result_tables import markdown, percent
from transfer_probes import look_at_encoder, look_at_pair
from transfer_setup import IDENTITY, MADE_OF, PLUGINS, SEEN, SETS, Study

from avssl.cli import parse
from avssl.config import PretrainConfig
from avssl.data.catalog import open_data
from avssl.data.splits import open_splits
from avssl.data.strata import row_groups
from avssl.evaluation.plots import FAINT, class_style, new_figure, save, styled
from avssl.evaluation.result import FILE as PREDICTIONS
from avssl.evaluation.result import read_predictions
from avssl.evaluation.statistics import Difference, holm, over_draws
from avssl.training.optimizer import total_steps
from mast.files import atomic_path
from mast.plugins import import_plugin

Row = dict[str, Any]


def best_of_rates(rows: Iterable[Row]) -> list[Row]:
    """Of runs that differ in the learning rate alone, the one that is best in validation; ties: the lowest rate."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row.get("lr", 0.0)):
        key = tuple(row[name] for name in ("column", "from", "head", "share", "draw"))
        if key not in best or _validated(row) > _validated(best[key]):
            best[key] = row
    return [*best.values()]


def _validated(row: Row) -> float:
    return float(row["weights"].get("value", 0.0))  # of the checkpoint that was chosen


def compare(rows: list[Row], groups: dict[str, dict[str, str]]) -> list[Row]:
    """Every pretrained start against random weights of its architecture, draws that both have, corrected together.

    Args:
        rows: fine-tunings, with "right" (clip -> whether it was right).
        groups: column -> clip -> what it is of; a clip without is of itself.
    """
    random = {_place(row, row["from"]): row for row in rows if row["partner"] is None}
    pairs: dict[tuple[Any, ...], list[tuple[Row, Row]]] = {}
    for row in rows:
        if row["partner"] is not None and (other := random.get(_place(row, row["partner"]))) is not None:
            pairs.setdefault((row["column"], row["head"], row["share"], row["from"]), []).append((row, other))
    out: list[Row] = []
    for (column, head, share, start), both in sorted(pairs.items()):
        drawn, names = [], []
        for ours, theirs in both:
            clips = sorted(ours["right"].keys() & theirs["right"].keys())
            drawn.append(np.array([float(ours["right"][clip]) - float(theirs["right"][clip]) for clip in clips]))
            names.append([groups.get(column, {}).get(clip, clip) for clip in clips])
        found: Difference = over_draws(drawn, names)
        out.append(
            {
                **{"column": column, "head": head, "share": share, "from": start, "draws": len(both)},
                "pretrained": [_top1(ours) for ours, _ in both],
                "random": [_top1(theirs) for _, theirs in both],
                **{"difference": found.value, "low": found.low, "high": found.high, "p": found.p, "test": found.test},
            }
        )
    for row, p in zip(out, holm([row["p"] for row in out]), strict=True):
        row["p_corrected"] = p
    return out


def _place(row: Row, start: str) -> tuple[Any, ...]:
    return (row["column"], row["head"], row["share"], row["draw"], start)


def _top1(row: Row) -> float:
    return float(row["metrics"][f"{row['label']}/top1"])


def table(result: Row) -> str:
    """Markdown: the comparisons, the pretrainings, and the probes of identity beside class."""
    lines = [
        [
            row["column"],
            f"{row['share']:.0%}",
            row["head"],
            row["from"],
            percent(row["random"]),
            percent(row["pretrained"]),
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})",
            f"{row['p_corrected']:.3f}",
            "worse" if row["high"] < 0 else "better" if row["low"] > 0 else "",
        ]
        for row in result["comparisons"]
    ]
    head = ["fine-tuned on", "labels", "head", "pretrained on", "random", "pretrained"]
    parts = [markdown([*head, "points ahead (95 %)", "p, corrected", "beyond the interval"], lines)]
    pretrained = [row for row in result["rows"] if row["kind"] == "pretrain"]
    lines = []
    for start in dict.fromkeys(row["from"] for row in pretrained):
        mine = [row for row in pretrained if row["from"] == start]
        joint = [row["joint"] for row in mine if row.get("joint")]
        ways = [percent([row["metrics"][f"{way}/R@1"] for row in mine]) for way in ("audio_to_video", "video_to_audio")]
        numbers = [f"{np.mean([each[key] for each in joint]):.2f}" if joint else "" for key in
                   ("alignment", "audio_uniformity", "video_uniformity", "audio_rank", "video_rank")]  # fmt: skip
        lines.append([start, *ways, percent([row["metrics"]["chance/R@1"] for row in mine]), *numbers])
    head = ["pretrained on", "audio to video R@1", "video to audio R@1", "chance", "alignment"]
    parts.append(markdown([*head, "uniformity, audio", "video", "rank, audio", "video"], lines))
    lines = []
    looked = [row for row in result["rows"] if row.get("encoder")]
    for column, start in dict.fromkeys((row["column"], row["from"]) for row in looked):
        mine = [row for row in looked if (row["column"], row["from"]) == (column, start)]
        who = [row["encoder"]["identity"] for row in mine if row["encoder"]["identity"]]
        shape = [row["encoder"]["numbers"] for row in mine]
        mean = {key: f"{np.mean([each[key] for each in shape]):.2f}" for key in shape[0]}
        lines.append(
            [column, start, percent([_top1(row) for row in mine]), percent([each["top1"] for each in who]),
             percent([each["chance"] for each in who]), mean["audio_feature_rank"], mean["uniformity"]]
        )  # fmt: skip
    head = ["set", "encoder", "class, linear probe", "identity, linear probe", "identity, chance"]
    parts.append(markdown([*head, "rank of features", "uniformity of features"], lines))
    return "\n\n".join(parts)


def plot(result: Row, path: Path) -> None:
    """Top-1 against the number that a recipe is named by, of clips for example: a line a share of the labels.

    Raises:
        ValueError: no recipe is named by a number.
    """
    rows = [row for row in result["comparisons"] if row["from"].partition("-")[0].isdigit()]
    if not rows:
        raise ValueError(f"{result['benchmark']}: no recipe is named by a number, such as --recipe 400 ...")
    kinds = list(dict.fromkeys((row["column"], row["head"]) for row in rows))
    figure = new_figure(5.6 * len(kinds), 3.8)
    with styled():
        for axes, (column, head) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            mine = [row for row in rows if (row["column"], row["head"]) == (column, head)]
            for place, share in enumerate(sorted({row["share"] for row in mine})):
                line = sorted((int(row["from"].partition("-")[0]), row) for row in mine if row["share"] == share)
                colour, marker = class_style(place)
                scores = np.array([row["pretrained"] for _, row in line])
                axes.plot(
                    [n for n, _ in line],
                    scores.mean(1),
                    marker=marker,
                    color=colour,
                    label=f"{share:.0%} of the labels",
                )
                axes.fill_between(
                    [n for n, _ in line], scores.min(1), scores.max(1), color=colour, alpha=0.15, linewidth=0
                )
                axes.axhline(np.mean(line[0][1]["random"]), color=colour, linestyle="--", linewidth=1)
            axes.set(title=f"{column}, {head} head", xlabel="clips that were pretrained on", ylabel="top-1")
            axes.set_xscale("log")
            numbers = sorted({int(row["from"].partition("-")[0]) for row in mine})
            axes.set_xticks(numbers, [f"{n:,}" for n in numbers])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_ylim(0)
            axes.grid(True, axis="y")
        handles, labels = axes.get_legend_handles_labels()
        handles.append(Line2D([], [], color=FAINT, linestyle="--", linewidth=1))
        figure.legend(handles, [*labels, "random weights"], loc="outside lower center", ncols=3, fontsize=8)
    save(figure, path)


def plan(study: Study, runs: Path, parallel: int) -> Iterator[str]:
    """Times short runs of every kind, a line each, and says at last what all runs together take."""
    runs = runs / "plan"
    minutes = 0.0
    first = study.shortened()
    for cell in first.pretraining():
        fixed, step = _timed(cell, runs)
        config = parse(PretrainConfig, list(cell.arguments))
        clips = len(open_splits(config.data, modalities=("audio", "video"), labelled=False).train)
        steps = total_steps(config.optim, clips, 1)
        each = (fixed + step * steps) / 60
        minutes += study.draws * each
        yield f"{cell.name.rpartition(':')[0]}: {study.draws} x {each:.1f} min, {steps} steps of {step:.2f} s"
    for cell in first.tuning(runs):
        shares = study.shares_of(cell.about["head"])
        if cell.about["draw"] or cell.about["share"] != max(shares) or cell.about["partner"] is None:
            continue  # random weights and small shares take no longer
        if cell.about["from"] != first.starts()[0][0]:
            continue
        full = cell.about["head"] == "full"
        fixed, step = _timed(cell, runs) if full else (_seconds(cell, (), runs), 0.0)
        each = (fixed + step * study.steps) / 60
        count = study.draws * len(shares) * (len(study.starts()) + 1)
        minutes += count * each
        yield f"{cell.about['column']}, {cell.about['head']}: {count} x {each:.1f} min"
    pretrainings, linear, full_count = study.count()
    yield (
        f"{pretrainings} pretrainings, {linear} linear and {full_count} full fine-tunings: {minutes / 60:.1f} hours of "
        f"processor time, {minutes / 60 / parallel:.1f} hours with --parallel {parallel} on as many free cores"
    )


def _timed(cell: Cell, runs: Path) -> tuple[float, float]:
    """Processor-seconds of a run beside its steps, and of a step, from two short runs."""
    few, more = (_seconds(cell, ("--optim.max_steps", str(n), "--log.validate_every", "0"), runs) for n in (2, 8))
    step = max(0.0, (more - few) / 6)
    return max(0.0, few - 2 * step), step


def _seconds(cell: Cell, more: tuple[str, ...], runs: Path) -> float:
    """Processor-seconds of a run of ``cell`` with further options; of an earlier call where it was timed before.

    The last run of a pretraining is where fine-tunings of the plan start, and counts as finished.
    """
    file, key = runs / "seconds.json", json.dumps([cell.tool, *cell.arguments, *more])
    known: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    if key not in known:
        folder = cell.folder(runs)
        folder.mkdir(parents=True, exist_ok=True)
        options = [*cell.arguments, *more, *ALONE, *UNTRACKED, "--resume", "none", "--output", str(folder / "run")]
        used = usage(cell.tool, options, folder / "plan.log")
        known[key] = used.ru_utime + used.ru_stime
        for path, value in ((file, known), (folder / "measured.json", {})):
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(value))
    return known[key]


class Results:
    """Rows as they come, and the JSON that is made of them."""

    def __init__(self, study: Study, runs: Path, output: Path | None, head: Row) -> None:
        self.study, self.runs, self.output, self.head = study, runs, output, head
        self.rows: dict[str, Row] = {}
        self.groups: dict[str, dict[str, str]] = {}
        self.known: set[tuple[str, int]] = set()

    def keep(self, cell: Cell, row: Row) -> None:
        """Adds a finished run, and writes the JSON anew."""
        row = dict(published(row))
        if cell.about["kind"] == "tune":
            found = read_predictions(cell.folder(self.runs) / "run" / PREDICTIONS)
            head = row["label"]
            right = found.predicted[head] == found.truth[head]
            row["right"] = dict(zip(found.clip_ids, right.tolist(), strict=True))
            self._know_groups(row["column"], row["draw"])
        self.rows[row["cell"]] = row
        self.write()

    def _know_groups(self, column: str, draw: int) -> None:
        if (column, draw) in self.known:
            return
        self.known.add((column, draw))
        manifest = open_data(column, root=self.study.root(column), options=self.study.split(column, draw))
        ids = manifest.column("clip_id")
        firsts = _firsts(row_groups(manifest)[0])
        groups = self.groups.setdefault(column, {})  # draws that share clips group them alike
        groups.update((clip, ids[first]) for clip, first in zip(ids, firsts, strict=True))

    def look(self, cell: Cell) -> None:
        """Adds what the encoder or the pair of a finished run tells; kept beside the run."""
        about, row = cell.about, self.rows[cell.name]
        file, run = cell.folder(self.runs) / "looked.json", cell.folder(self.runs) / "run"
        if not file.is_file():
            if about["kind"] == "pretrain":
                found: Row = {"joint": look_at_pair(self.study, about["row"], about["draw"], run)}
            else:
                found = {"encoder": look_at_encoder(self.study, about["column"], about["draw"], run)}
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(found))
        row |= json.loads(file.read_text())
        self.write()

    def result(self) -> Row:
        """All of it, for JSON."""
        tuned = best_of_rates(row for row in self.rows.values() if row["kind"] == "tune")
        told = [{key: value for key, value in self.rows[name].items() if key != "right"} for name in sorted(self.rows)]
        return {**self.head, "comparisons": compare(tuned, self.groups), "rows": told}

    def write(self) -> None:
        """Writes the JSON where one is asked for."""
        if self.output:
            write_result(self.output, str(self.head["benchmark"]), self.result())


def _firsts(groups: np.ndarray) -> list[int]:
    """The first row of the group of every row."""
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    return first[members].tolist()


def run_all(results: Results, only: list[str], parallel: int) -> int:
    """Pretrains, looks, fine-tunes; the number of runs that failed."""
    study, runs, failed = results.study, results.runs, 0
    for what, make in (("pretrainings", study.pretraining), ("fine-tunings", lambda: study.tuning(runs))):
        cells = {cell.name: cell for cell in make() if any(cell.name.startswith(start) for start in only)}
        for cell in cells.values():
            if row := measured(cell, runs):
                results.keep(cell, row)  # of earlier calls
        left = [cell for cell in cells.values() if cell.name not in results.rows]

        def keep(row: Row, cells: dict[str, Cell] = cells) -> None:
            results.keep(cells[row["cell"]], row)

        failed += measure_all(left, runs, parallel, keep, what)
        for cell in cells.values():
            whole = cell.about["kind"] == "pretrain" or (cell.about["head"] == "linear" and cell.about["share"] == 1)
            if whole and cell.name in results.rows:
                results.look(cell)
    return failed


def arguments_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=SEEN, default=["demo-sources"], help="sets to pretrain on")
    parser.add_argument("--columns", nargs="+", choices=[*SETS], default=["demo-sources"], help="sets to fine-tune on")
    for name in ("grid", "esc10", "fsdd"):
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"folder of {name}")
    parser.add_argument("--options", nargs=2, action="append", default=[], metavar=("SET", "JSON"),
                        help="options of a set: demo-sources '{\"shortcut\": 0.5}'")  # fmt: skip
    parser.add_argument("--recipe", nargs=2, action="append", default=[], metavar=("NAME", "OPTIONS"),
                        help="options of tools/pretrain.py over the set's recipe; default: recipe \"\"")  # fmt: skip
    parser.add_argument("--finetune", default="", metavar="OPTIONS", help="options of every tools/finetune.py")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.3, 1.0], help="of the labels")
    parser.add_argument("--full-shares", type=float, nargs="+", help="of a full head; default: those of --shares")
    parser.add_argument("--heads", nargs="+", choices=("linear", "full"), default=["linear", "full"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240, help="of a full fine-tuning, whatever its share")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4], help="learning rates, chosen in validation")
    parser.add_argument("--only", nargs="+", metavar="CELL", default=[""], help="how the names begin: esc10:random")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="folder of the runs")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--plan", action="store_true", help="time short runs, print what all of it takes, and stop")
    parser.add_argument("--output", type=Path, help="folder for the JSON result; none by default")
    parser.add_argument("--label", default="", help="ends the result's name")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw a result in --output whose recipes are named by numbers, and stop")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the tables of the result in --output and stop")
    return parser


def main() -> int:
    parser = arguments_of()
    args = parser.parse_args()
    name = "transfer" + (f"_{args.label}" if args.label else "")
    if args.table or args.plot:
        if args.output is None:
            parser.error("--table and --plot need --output, the folder of transfer.json")
        known = json.loads((args.output / f"{name}.json").read_text())
        if args.table:
            print(table(known))
        if args.plot:
            plot(known, args.plot)
        return 0
    roots = {each: path for each in ("grid", "esc10", "fsdd") if (path := getattr(args, each))}
    for each in {MADE_OF.get(each, each) for each in (*args.rows, *args.columns)} - {"demo", "demo-sources", *roots}:
        parser.error(f"{each} needs --{each}, its folder")
    for each in MADE_OF:
        if each in args.rows and MADE_OF[each] in args.columns:
            parser.error(f"{each} is made of {MADE_OF[each]}: who is held out of one may be heard in the other")
    for each, _ in args.options:
        if each not in SETS:
            parser.error(f"--options {each}: there is no such set; there are {', '.join(SETS)}")
    if args.draws < 1 or not all(0 < share <= 1 for share in (*args.shares, *(args.full_shares or ()))):
        parser.error("--draws must be at least 1, --shares and --full-shares above 0 and at most 1")
    for each in {*args.rows, *args.columns} & PLUGINS.keys():
        import_plugin(PLUGINS[each][1])
    study = Study(
        rows=tuple(args.rows),
        columns=tuple(args.columns),
        roots=roots,
        options={each: json.loads(text) for each, text in args.options},
        recipes=dict(args.recipe) or {"recipe": ""},
        shares=tuple(sorted(args.shares)),
        full_shares=tuple(sorted(args.full_shares)) if args.full_shares else None,
        heads=tuple(args.heads),
        draws=args.draws,
        steps=args.steps,
        rates=tuple(args.rates),
        finetune=args.finetune,
    )
    if args.plan:
        for line in plan(study, args.runs, args.parallel):
            print(line, flush=True)
        return 0
    settings = {key: value for key, value in settings_of(args).items() if key not in ("runs", "table", "plot", "plan")}
    head = {"benchmark": name, "machine": describe_machine(), "settings": settings, "identity": IDENTITY}
    results = Results(study, args.runs, args.output, head)
    failed = run_all(results, args.only, args.parallel)
    print(f"\n{table(results.result())}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
