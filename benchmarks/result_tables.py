"""Tables of the page of results, from the JSON that benchmarks write; nothing is measured here."""

import statistics
from collections.abc import Sequence
from typing import Any


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


def evidence_table(result: dict[str, Any]) -> str:
    """MAST against AST: a line a set, model and budget; means over splits with their deviation.

    Differences are split by split, between runs of the same split.
    """
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
                ]
            )
    header = ["data", "model", "passes", "steps take", "top-1", "ahead of AST (splits)", "NMI"]
    return markdown([*header, "random weights, probe", "lr", "splits"], lines)


def _step_minutes(result: dict[str, Any], name: str, model: str, passes: float) -> float:
    plan = result["plan"]
    steps = passes * (plan["clips"][name][0] // result["settings"]["batch"][name])
    return steps * plan["steps"][name][model] / 60
