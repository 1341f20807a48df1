"""Tables of the page of results, from the JSON that benchmarks write; nothing is measured here."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

# What is predicted on each set that is pretrained on; the first stands for it where there is room for one.
HEADS = {"demo": ("event",), "grid": ("digit", "colour")}
SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)
FEW_LABELS = ("data", "trained", *(f"{share:.0%} of the labels" for share in SHARES), "revision")
NOTHING = "Not measured yet."
# Of each kind of damage the steps that make a curve.
CONDITIONS = (
    *("noise, SNR 20 dB", "noise, SNR 10 dB", "noise, SNR 0 dB", "reverberation, 0.3 s", "reverberation, 2 s"),
    *("telephone band", "gain -20 dB", "clipped, 25% of samples", "opus 6 kbit/s", "50% missing"),
)


def spread(values: Sequence[float], unit: str = "", digits: int = 1, scale: float = 1) -> str:
    """Mean and standard deviation, or the one value; nothing of none."""
    if not values:
        return ""
    deviation = f" +- {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{unit}{deviation}"


def percent(values: Sequence[float], unit: str = " %") -> str:
    """:func:`spread` of shares, as percentages."""
    return spread(values, unit, scale=100)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def _top1(row: dict[str, Any]) -> float:
    return next(value for key, value in row["metrics"].items() if key.endswith("/top1"))


def evidence_table(*results: dict[str, Any]) -> str:
    """MAST against AST: a line a set and result; means over splits with their deviation.

    Differences are split by split, between runs of the same split and result.
    """
    lines = [line for result in results for line in _evidence_lines(result)]
    header = ["data", "AST", "MAST, equal passes", "ahead (splits)", "MAST, equal time", "ahead (splits)", "passes"]
    header += ["minutes of steps", "NMI", "random weights, probe", "lr", "revision"]
    return markdown(header, sorted(lines, key=lambda line: line[0])) if lines else ""


# As the columns with several values have them.
_BUDGETS = (("ast", "passes"), ("mast", "passes"), ("mast", "time"))


def _evidence_lines(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for name in result["plan"]["epochs"]:
        rows = [row for row in result["rows"] if row["data"] == name]
        trained = [row for row in rows if row["kind"] == "trained"]
        runs = {key: [row for row in trained if (row["model"], row["budget"]) == key] for key in _BUDGETS}
        if not runs["ast", "passes"]:
            continue  # there is nothing to compare with yet
        ast = {row["split"]: _top1(row) for row in runs["ast", "passes"]}
        cells = [percent(list(ast.values()))]
        for key in _BUDGETS[1:]:
            ahead = [_top1(row) - ast[row["split"]] for row in runs[key] if row["split"] in ast]
            wins = f" ({sum(value > 0 for value in ahead)} of {len(ahead)})" if ahead else ""
            cells += [percent([_top1(row) for row in runs[key]]), percent(ahead, " points") + wins]
        done = {key: found for key, found in runs.items() if found}
        random = {
            model: [_top1(row) for row in rows if (row["model"], row["kind"]) == (model, "random")]
            for model in ("ast", "mast")
        }
        nmi = [[values["NMI"] for row in found for values in row["clustering"].values()] for found in done.values()]
        lines.append(
            [
                name,
                *cells,
                " / ".join(f"{found[0]['passes']}" for found in done.values()),
                " / ".join(
                    f"{_step_minutes(result, name, key[0], found[0]['passes']):.1f}" for key, found in done.items()
                ),
                " / ".join(spread(values, digits=2) for values in nmi),
                " / ".join(percent(values) for values in random.values() if values),
                " / ".join(f"{found[0]['lr']:g}" for found in done.values()),
                f"{result['machine']['revision']}",
            ]
        )
    return lines


def _step_minutes(result: dict[str, Any], name: str, model: str, passes: float) -> float:
    plan = result["plan"]
    steps = passes * (plan["clips"][name][0] // result["settings"]["batch"][name])
    return steps * plan["steps"][name][model] / 60


def _mean(rows: Sequence[dict[str, Any]], key: str, part: str = "metrics") -> str:
    """Over seeds, of those that have it, as a percentage."""
    return percent([row[part][key] for row in rows if key in row.get(part, {})])


def _groups(result: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of the seeds of each set and loss, in the order of the result."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["data"], row["loss"]), []).append(row)
    return groups


def _revisions(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(sorted({str(row["revision"]) for row in rows}))


def pretraining_table(result: dict[str, Any]) -> str:
    """A line a set and loss, random weights first: probe, fine-tuning, retrieval and clusters over seeds."""
    lines = []
    for (data, loss), rows in sorted(_groups(result).items(), key=lambda item: (item[0][0], item[0][1] != "random")):
        heads = HEADS[data]
        probes = [_mean(rows, f"probe/{head}/top1") for head in heads]
        clusters = [
            spread([row["metrics"][key] for row in rows if key in row["metrics"]], digits=2)
            for key in (f"{heads[0]}/NMI", f"{heads[0]}/silhouette")
        ]
        retrieved = [_mean(rows, f"{way}/R@1") or "chance" for way in ("audio_to_video", "video_to_audio")]
        terms = rows[0].get("objectives")
        lines.append(
            [
                data,
                loss if loss != "random" else "random weights",
                " + ".join(_term(term) for term in terms) if terms else "",
                f"{rows[0]['passes']:g}" if terms else "",
                " / ".join(probes),
                _mean(rows, f"{heads[0]}/top1", "full"),
                *retrieved,
                *clusters,
                f"{len(rows)}",
                _revisions(rows),
            ]
        )
    header = [
        "data",
        "start",
        "loss",
        "passes",
        "linear probe",
        "full fine-tune",
        "R@1, audio to video",
        "video to audio",
    ]
    return markdown([*header, "NMI", "silhouette", "seeds", "revision"], lines) if lines else ""


def _term(term: dict[str, Any]) -> str:
    """0.5 vicreg (projection: infonce)"""
    options = {key: value for key, value in term.items() if key not in ("name", "weight")}
    told = ", ".join(f"{key}: {value}" for key, value in options.items())
    weight = "" if term.get("weight", 1) == 1 else f"{term['weight']:g} "
    return f"{weight}{term['name']}{f' ({told})' if told else ''}"


def few_label_lines(result: dict[str, Any]) -> list[list[str]]:
    """Linear probes on shares of the labels, of random weights and of the recipe: lines of FEW_LABELS."""
    lines = []
    for (data, loss), rows in _groups(result).items():
        key = f"few_label/{HEADS[data][0]}"
        rows = [row for row in rows if any(key in name for name in row["metrics"])]
        if loss == "recipe" and rows:
            found = [[_mean(rows, f"{key}/{share:.0%}/{start}top1") for start in ("random_", "")] for share in SHARES]
            cells = [" / ".join(both) for both in found]
            lines.append([f"{data} {HEADS[data][0]}", "linear probe", *cells, _revisions(rows)])
    return lines


def full_few_label_lines(result: dict[str, Any]) -> list[list[str]]:
    """Full fine-tuning on shares of the labels, both starts on the same draws: lines of FEW_LABELS."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["data"] == data]
        found = [
            [
                percent([_top1(row) for row in mine if (row["share"], row["start"]) == (share, start)])
                for start in ("random", "pretrained")
            ]
            for share in SHARES
        ]
        cells = [" / ".join(both) for both in found]
        lines.append([f"{data} {mine[0]['head']}", "all weights", *cells, result["machine"]["revision"]])
    return lines


def losses_table(results: Path) -> str:
    """Losses at one budget on validation clips, over seeds, the best probe first; those of the recipes are marked."""
    lines = []
    for file in sorted(results.glob("objectives_*validation.json")):
        result = json.loads(file.read_text())
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in result["rows"]:
            groups.setdefault((row["data"], row["objective"]), []).append(row)
        for (data, objective), rows in sorted(
            groups.items(), key=lambda item: (item[0][0], -statistics.mean(row["probe"] for row in item[1]))
        ):
            loss = " + ".join(_term(term) for term in result["objectives"][objective])
            mark = ", the default" if loss == _default_loss(data) else ""
            keys = ("probe", "audio_to_video", "video_to_audio")
            lines.append([data, loss + mark, *(percent([row[key] for row in rows]) for key in keys), f"{len(rows)}"])
            lines[-1].append(result["machine"]["revision"])
    header = ["data", "loss", "linear probe", "R@1, audio to video", "video to audio", "seeds", "revision"]
    return markdown(header, lines) if lines else NOTHING


def _default_loss(data: str) -> str:
    """What the recipe compares a sound and its picture by."""
    recipe = yaml.safe_load((Path(__file__).parents[1] / f"configs/pretrain/{data}.yaml").read_text())
    return " + ".join(_term(term) for term in recipe["objectives"] if "modality" not in term)


def localization_table(result: dict[str, Any]) -> str:
    """Where the sound is in the picture: a line a measure; the losses, and what they must beat."""
    groups = {
        loss: rows
        for (_, loss), rows in _groups(result).items()
        if any("localization/AUC" in row["metrics"] for row in rows)
    }
    if "recipe" not in groups:
        return ""
    others = {"another clip's sound": "other_sound/", "random weights": "random/", "the centre": "centre/"}
    others |= {"the best possible": "best/"}
    lines = []
    for key in ("cIoU@0.5", "AUC", "pointing"):
        cells = [_mean(rows, f"localization/{key}") for rows in groups.values()]
        cells += [_mean(groups["recipe"], f"localization/{prefix}{key}") for prefix in others.values()]
        lines.append([key, *cells])
    return markdown(["", *groups, *(f"recipe, {name}" if "clip" in name else name for name in others)], lines)


def robustness_table(result: dict[str, Any]) -> str:
    """Linear probes on damaged sound, trained on clean sound: a line a set and loss, the damages from left to right."""
    lines = []
    for (data, loss), rows in _groups(result).items():
        head = HEADS[data][0]
        rows = [row for row in rows if f"robustness/{CONDITIONS[0]}/{head}/top1" in row["metrics"]]
        if rows:
            cells = [_mean(rows, f"robustness/{condition}/{head}/top1") for condition in CONDITIONS]
            lines.append([f"{data} {head}", loss, _mean(rows, f"probe/{head}/top1"), *cells])
    return markdown(["data", "loss", "clean", *CONDITIONS], lines) if lines else ""


def recipes_table(result: dict[str, Any]) -> str:
    """Recipes of labelled sets from scratch, each with its own command and revision."""
    header = ["data", "command", "top-1", "splits", "on"]
    lines = [
        [row["data"], f"`{row['command']}`", percent(row["top1"]), ", ".join(row["splits"]), row["on"]]
        for row in result["rows"]
    ]
    return markdown(header, lines)


def costs_table(results: Path) -> str:
    """What loading and batches in chunks cost, each by its own benchmark."""
    scan, rows, cached = (_read(results, name) for name in ("scan", "manifest", "gradient_cache_cpu"))
    lines = []
    to = "--output benchmarks/results"
    if scan:
        two, one = scan["processes"], scan["one_process"]
        told = f"two processes {two['scan_per_s']:.0f} files/s, {two['speedup']:.2f} of bare PyAV; one process "
        told += f"{one['scan_per_s']:.0f}, {one['speedup']:.2f}; peak memory {scan['memory']['peak_mib']:.0f} MiB"
        what = f"Probe-only scan of {scan['settings']['media']}"
        lines.append([what, told, told_of(scan), f"`python benchmarks/scan.py --media PATH {to}`"])
    if rows:
        worker, cost = rows["workers_mib"][0], rows["rows_cost_mib"]
        told = f"loaded in {rows['load_s']:.2f} s; a worker owns {worker['uss']:.0f} MiB, the rows {cost['uss']:.0f}"
        what = f"A manifest of {rows['settings']['rows']} rows"
        lines.append([what, told, told_of(rows), f"`python benchmarks/manifest.py {to}`"])
    if cached:
        ratio, batch = cached["ratios"], cached["settings"]["batch"]
        told = f"{ratio['memory_mib']:.2f}x the memory above idle, {ratio['seconds_per_clip']:.2f}x the time a clip"
        what = f"A batch of {batch * cached['settings']['times']} in chunks of {batch}, against a batch of {batch}"
        lines.append([what, told, told_of(cached), f"`python benchmarks/gradient_cache.py {to}`"])
    return markdown(["what", "result", "on", "command"], lines)


def told_of(result: dict[str, Any]) -> str:
    """Processor, version of torch, date and revision."""
    machine = result["machine"]
    where = f"{machine['processor']}; torch {machine['torch']}; {machine['date'][:10]}"
    return f"{where}, {machine['revision']}"


def _evidence(results: Path) -> str:
    """Of every result that there is, the newest first."""
    return evidence_table(*(json.loads(file.read_text()) for file in sorted(results.glob("evidence*.json")))) or NOTHING


def _read(results: Path, name: str) -> dict[str, Any] | None:
    file = results / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def few_labels_table(results: Path) -> str:
    """Linear probes and full fine-tuning on shares of the labels, random weights / pretrained ones."""
    linear, full = _read(results, "pretraining"), _read(results, "few_labels")
    lines = (few_label_lines(linear) if linear else []) + (full_few_label_lines(full) if full else [])
    return markdown(FEW_LABELS, lines) if lines else NOTHING


def transfer_table(results: Path) -> str:
    """Full fine-tuning from pretrained weights, with features as they are and standardized, against random weights."""
    found, kept = _read(results, "transfer"), _read(results, "transfer_kept")
    if found is None or not found["comparisons"]:
        return NOTHING
    same = ("column", "share", "head", "from")
    others = {tuple(row[key] for key in same): row for row in (kept or {}).get("comparisons", ())}
    lines = []
    for row in found["comparisons"]:
        other = others.get(tuple(row[key] for key in same))
        points = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * row[key] for key in ("difference", "low", "high")))
        columns = [row["column"], f"{row['share']:.0%}", row["from"], percent(row["random"])]
        columns += [percent(other["pretrained"]) if other else "", percent(row["pretrained"]), points]
        lines.append([*columns, str(row["draws"]), found["machine"]["revision"]])
    header = ["fine-tuned on", "labels", "pretrained on", "random weights", "features as they are", "standardized"]
    return markdown([*header, "points ahead of random (95 %)", "seeds", "revision"], lines)


def shortcut_table(results: Path) -> str:
    """What a head learns from random weights, from contrast alone and from the recipe, where sources are a shortcut.

    A line a set and head, a column a share of the labels. The recipe's score is marked where it is apart from random
    weights: with one sign where the 95 % interval is, with two where the corrected p is below 0.05, too.
    """
    lines, shares = [], (0.01, 0.05, 0.1, 0.3, 1.0)
    for found in filter(None, (_read(results, name) for name in ("transfer_sources", "transfer_voices"))):
        rows = {tuple(row[key] for key in ("from", "column", "head", "share")): row for row in found["comparisons"]}
        told = dict.fromkeys(key[:3] for key in rows if f"plain-{key[0]}" in {other[0] for other in rows})
        for start, column, head in told:
            cells, draws = [], set()
            for share in shares:
                row, plain = rows.get((start, column, head, share)), rows.get((f"plain-{start}", column, head, share))
                cells.append(_three_starts(row, plain) if row and plain else "")
                draws |= {row["draws"], plain["draws"]} if row and plain else set()
            if any(cells):
                seeds = " to ".join(map(str, sorted(draws)))
                lines.append([start, column, head, *cells, seeds, found["machine"]["revision"]])
    header = ["pretrained on", "classified", "head", *(f"{share:.0%} of the labels" for share in shares)]
    return markdown([*header, "seeds", "revision"], lines) if lines else NOTHING


def _three_starts(row: dict[str, Any], plain: dict[str, Any]) -> str:
    """13.3 / 12.1 / 47.7 ++"""
    sign = "+" if row["low"] > 0 else "-" if row["high"] < 0 else ""
    mark = sign * (2 if row["p_corrected"] < 0.05 else 1)
    scores = (statistics.mean(each) for each in (row["random"], plain["pretrained"], row["pretrained"]))
    return " ".join([" / ".join(f"{100 * score:.1f}" for score in scores), mark]).strip()


def _of(read: Callable[[Path], Any], made: Callable[[dict[str, Any]], str]) -> Callable[[Path], str]:
    """The table that is ``made`` of what is read of a folder, or that there is nothing."""

    def table(results: Path) -> str:
        result = read(results)
        return (made(result) if result else "") or NOTHING

    return table


TABLES: dict[str, Callable[[Path], str]] = {
    "mast-vs-ast": _evidence,
    "recipes": _of(lambda results: _read(results, "recipes"), recipes_table),
    "pretraining": _of(lambda results: _read(results, "pretraining"), pretraining_table),
    "few-labels": few_labels_table,
    "transfer": transfer_table,
    "shortcut": shortcut_table,
    "losses": losses_table,
    "localization": _of(lambda results: _read(results, "pretraining"), localization_table),
    "robustness": _of(lambda results: _read(results, "pretraining"), robustness_table),
    "costs": costs_table,
}
