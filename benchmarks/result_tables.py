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
FEW_LABELS = ("data", "trained", "start", *(f"{share:.0%} of the labels" for share in SHARES))
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
    """MAST against AST: a line a set, model and budget; means over splits with their deviation.

    Differences are split by split, between runs of the same split and result.
    """
    lines = [line for result in results for line in _evidence_lines(result)]
    header = ["data", "model", "passes", "steps take", "top-1", "ahead of AST (splits)", "NMI"]
    header += ["random weights, probe", "lr", "splits", "revision"]
    return markdown(header, sorted(lines, key=lambda line: line[0])) if lines else ""


def _evidence_lines(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for name in result["plan"]["epochs"]:
        rows = [row for row in result["rows"] if row["data"] == name]
        trained = [row for row in rows if row["kind"] == "trained"]
        ast = {row["split"]: _top1(row) for row in trained if row["model"] == "ast"}
        for model, budget, label in (
            ("ast", "passes", "AST"),
            ("mast", "passes", "MAST, equal passes"),
            ("mast", "time", "MAST, equal time"),
        ):
            mine = [row for row in trained if (row["model"], row["budget"]) == (model, budget)]
            if not mine:
                continue
            random = [row for row in rows if (row["model"], row["kind"]) == (model, "random")]
            ahead = [_top1(row) - ast[row["split"]] for row in mine if model == "mast" and row["split"] in ast]
            wins = f" ({sum(value > 0 for value in ahead)} of {len(ahead)})" if ahead else ""
            minutes = _step_minutes(result, name, model, mine[0]["passes"])
            nmi = [values["NMI"] for row in mine for values in row["clustering"].values()]
            lines.append(
                [
                    name,
                    label,
                    f"{mine[0]['passes']}",
                    f"{minutes:.1f} min",
                    percent([_top1(row) for row in mine]),
                    percent(ahead, " points") + wins,
                    spread(nmi, digits=2),
                    percent([_top1(row) for row in random]) if budget == "passes" else "",
                    f"{mine[0]['lr']:g}",
                    f"{len(mine)}",
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
            spread([row["metrics"][f"{heads[0]}/{name}"] for row in rows], digits=2) for name in ("NMI", "silhouette")
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


def demo_table(result: dict[str, Any]) -> str:
    """The demo by the default loss: random weights beside pretrained ones, over seeds."""
    groups = _groups(result)
    random, pretrained = groups.get(("demo", "random"), []), groups.get(("demo", "default"), [])
    if not random or not pretrained:
        return ""
    head = HEADS["demo"][0]
    lines = [
        [title, _mean(random, key, part), _mean(pretrained, key, part)]
        for title, key, part in (
            ("linear probe, top-1", f"probe/{head}/top1", "metrics"),
            ("full fine-tune, top-1", f"{head}/top1", "full"),
        )
    ]
    for way in ("audio_to_video", "video_to_audio"):
        chance = f"{100 * pretrained[0]['metrics']['chance/R@1']:.1f} % (chance)"
        lines.append([f"zero-shot retrieval, R@1, {way.replace('_', ' ')}", chance, _mean(pretrained, f"{way}/R@1")])
    return markdown([f"{len(pretrained)} sets of videos", "random start", "pretrained start"], lines)


def _term(term: dict[str, Any]) -> str:
    """0.5 vicreg (projection: infonce)"""
    options = {key: value for key, value in term.items() if key not in ("name", "weight")}
    told = ", ".join(f"{key}: {value}" for key, value in options.items())
    weight = "" if term.get("weight", 1) == 1 else f"{term['weight']:g} "
    return f"{weight}{term['name']}{f' ({told})' if told else ''}"


def few_label_lines(result: dict[str, Any]) -> list[list[str]]:
    """Linear probes on shares of the labels of the default loss and of random weights: lines of FEW_LABELS."""
    lines = []
    for (data, loss), rows in _groups(result).items():
        head = HEADS[data][0]
        for start, prefix in (("random weights", "random_"), ("pretrained", "")) if loss == "default" else ():
            shares = [_mean(rows, f"few_label/{head}/{share:.0%}/{prefix}top1") for share in SHARES]
            lines.append([f"{data} {head}", "linear probe", start, *shares])
    return lines


def full_few_label_lines(result: dict[str, Any]) -> list[list[str]]:
    """Full fine-tuning on shares of the labels, both starts on the same draws: lines of FEW_LABELS."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in result["rows"]):
        for start, title in (("random", "random weights"), ("pretrained", "pretrained")):
            mine = [row for row in result["rows"] if (row["data"], row["start"]) == (data, start)]
            shares = [percent([_top1(row) for row in mine if row["share"] == share]) for share in SHARES]
            if mine:
                lines.append([f"{data} {mine[0]['head']}", "all weights", title, *shares])
    return lines


def losses_table(results: Path) -> str:
    """Losses at one budget on validation clips, over seeds, the best probe first; those of the recipes are marked."""
    lines, told = [], []
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
        told.append(f"{told_of(result)}; `{file.name}`")
    header = ["data", "loss", "linear probe", "R@1, audio to video", "video to audio", "seeds"]
    return "\n\n".join([markdown(header, lines), *told]) if lines else NOTHING


def _default_loss(data: str) -> str:
    recipe = yaml.safe_load((Path(__file__).parents[1] / f"configs/pretrain/{data}.yaml").read_text())
    return " + ".join(_term(term) for term in recipe["objectives"])


def localization_table(result: dict[str, Any]) -> str:
    """Where the sound is in the picture: each loss, and what it must beat."""
    lines = []
    keys = ("cIoU@0.5", "AUC", "pointing")
    others = {"random weights": "random/", "another clip's sound": "other_sound/", "the centre": "centre/"}
    for (data, loss), rows in _groups(result).items():
        if not any("localization/AUC" in row["metrics"] for row in rows):
            continue
        lines.append([data, loss, *(_mean(rows, f"localization/{key}") for key in keys)])
        if loss == "default":
            for title, prefix in (others | {"best possible": "best/"}).items():
                lines.append([data, title, *(_mean(rows, f"localization/{prefix}{key}") for key in keys)])
    return markdown(["data", "heat map of", *keys], lines) if lines else ""


def robustness_table(result: dict[str, Any]) -> str:
    """Linear probes on damaged sound, trained on clean sound: a line a set and loss, the damages from left to right."""
    lines = []
    for (data, loss), rows in _groups(result).items():
        head = HEADS[data][0]
        if any(f"robustness/{CONDITIONS[0]}/{head}/top1" in row["metrics"] for row in rows):
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
    found = [json.loads(file.read_text()) | {"file": file.name} for file in sorted(results.glob("evidence*.json"))]
    if not (lines := evidence_table(*found)):
        return NOTHING
    return "\n\n".join([lines, *(f"{told_of(result)}; `{result['file']}`" for result in found)])


def _read(results: Path, name: str) -> dict[str, Any] | None:
    file = results / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def few_labels_table(results: Path) -> str:
    """Linear probes and full fine-tuning on shares of the labels."""
    linear, full = _read(results, "pretraining"), _read(results, "few_labels")
    lines = (few_label_lines(linear) if linear else []) + (full_few_label_lines(full) if full else [])
    told = f"\n\nAll weights: {told_of(full)}; `few_labels.json`" if full else ""
    return markdown(FEW_LABELS, lines) + told if lines else NOTHING


def _of(name: str, made: Callable[[dict[str, Any]], str], stated: bool = True) -> Callable[[Path], str]:
    """A table of the result ``name``, and beneath it where and with what that was measured."""

    def table(results: Path) -> str:
        result = _read(results, name)
        lines = made(result) if result else ""
        if not result or not lines:
            return NOTHING
        return f"{lines}\n\n{told_of(result)}; `{name}.json`" if stated else lines

    return table


TABLES: dict[str, Callable[[Path], str]] = {
    "mast-vs-ast": _evidence,
    "recipes": _of("recipes", recipes_table, stated=False),
    "pretraining": _of("pretraining", pretraining_table),
    "demo": _of("pretraining", demo_table),
    "few-labels": few_labels_table,
    "losses": losses_table,
    "localization": _of("pretraining", localization_table, stated=False),
    "robustness": _of("pretraining", robustness_table, stated=False),
    "costs": costs_table,
}
