"""The main job, end to end, on the demo set: pretrain, linear probe, fine-tune, retrieval, and a table of it all."""

import logging
import sys
from dataclasses import replace
from typing import Any, Literal

from avssl.commands.finetune import finetune
from avssl.commands.pretrain import pretrain
from avssl.config import DemoConfig, FinetuneConfig, PretrainConfig, demo_settings
from avssl.evaluation.plots import drawn, head_to_head
from avssl.evaluation.report import Table, write_report
from avssl.evaluation.result import provenance, write_result
from avssl.evaluation.retrieval import retrieval_table
from avssl.locks import hold_for_all

logger = logging.getLogger(__name__)


def run(config: DemoConfig) -> int:
    """The command; returns the exit status, 130 where a signal ended the run."""
    result = demo(config)
    if not result["finished"]:
        return 130
    for table in result["tables"]:
        sys.stdout.write(f"\n{text_table(table)}\n")
    sys.stdout.write(f"\nreport: {result['report']}\n")
    return 0


def demo(config: DemoConfig) -> dict[str, Any]:
    """Runs everything, resuming what is done already, and writes the table to ``result.json`` and ``report.html``.

    Returns:
        What ``result.json`` holds, with ``finished``, which is False where a signal ended a run early, the ``tables``,
        and the path of the ``report``.

    Raises:
        HeldError: another process writes to the same folder.
    """
    with hold_for_all(config.output, "demo"):
        return _demo(config)


def _demo(config: DemoConfig) -> dict[str, Any]:
    common: dict[str, Any] = {
        name: getattr(config, name) for name in ("runtime", "wandb", "tensorboard", "loggers", "seed")
    }
    folder = config.output / "pretrain"
    pretraining = replace(demo_settings(PretrainConfig), **common, optim=config.pretrain, output=folder)
    pretraining.data = replace(config.data, val_fraction=pretraining.data.val_fraction)
    pretrained = pretrain(pretraining)
    if not pretrained["finished"]:
        return {"finished": False}
    accuracy: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    protocols: tuple[tuple[Literal["linear", "full"], str], ...]
    protocols = (("linear", "linear probe"), ("full", "full fine-tune"))
    for head, protocol in protocols:
        for start, checkpoint in (("random", "none"), ("pretrained", str(folder))):
            logger.info("%s from %s weights", protocol, start)
            result = finetune(
                replace(
                    demo_settings(FinetuneConfig),
                    **common,
                    data=config.data,
                    checkpoint=checkpoint,
                    head=head,
                    optim=config.finetune,
                    augment=config.augment,
                    output=config.output / f"{head}-{start}",
                )
            )
            if not result["finished"]:
                return {"finished": False}
            name = next(key for key in result["metrics"] if key.endswith("/top1")).removesuffix("/top1")
            accuracy.setdefault(protocol, {})[start] = result["metrics"][f"{name}/top1"]
            bounds = result["metrics"][f"{name}/top1_low"], result["metrics"][f"{name}/top1_high"]
            intervals.setdefault(protocol, {})[start] = bounds
    return _summarize(config, pretrained, accuracy, intervals)


def _summarize(
    config: DemoConfig,
    pretrained: dict[str, Any],
    accuracy: dict[str, dict[str, float]],
    intervals: dict[str, dict[str, tuple[float, float]]],
) -> dict[str, Any]:
    rows = [
        [protocol, *(f"{100 * starts[start]:.1f} %" for start in ("random", "pretrained"))]
        for protocol, starts in accuracy.items()
    ]
    classification = Table("Top-1 on the test split", ["", "random start", "pretrained start"], rows)
    clips, projection = pretrained["metrics"]["count"], pretrained["retrieval"]["projection"]
    retrieval = retrieval_table(pretrained["metrics"], f"{clips:.0f} clips, projection {projection}")
    result: dict[str, Any] = {"top1": accuracy, "retrieval": pretrained["metrics"], "seed": config.seed}
    result["provenance"] = provenance()
    write_result(config.output / "result.json", result)
    picture = config.output / "pictures" / "top1.png"
    caption = "Top-1 of random and pretrained starts, with 95 % intervals"
    pictures = drawn(picture, caption, head_to_head, accuracy, picture, intervals=intervals)
    pictures += [
        (config.output / path, caption)
        for path, caption in (
            ("pretrain/pictures/retrieval.png", "Audio queries and the clips whose video the pair finds for them"),
            ("linear-pretrained/pictures/tsne-event.png", "t-SNE of audio features: random weights and pretrained"),
            ("full-pretrained/pictures/confusion-event.png", "Confusion matrix after full fine-tuning"),
            ("pretrain/pictures/curves.png", "Curves of pretraining"),
        )
        if (config.output / path).is_file()
    ]
    report = write_report(
        config.output,
        title="avssl demo",
        summary={
            f"{protocol}, {start}": (f"{value:.1%}", "{:.1%} to {:.1%}".format(*intervals[protocol][start]))
            for protocol, starts in accuracy.items()
            for start, value in starts.items()
        },
        tables=[classification, retrieval],
        pictures=pictures,
        config_yaml=(config.output / "pretrain" / "config.yaml").read_text(),
        provenance=result["provenance"],
    )
    return result | {"finished": True, "tables": [classification, retrieval], "report": report}


def text_table(table: Table) -> str:
    """``table`` as aligned plain text."""
    rows = [list(map(str, table.columns)), *[["" if cell is None else str(cell) for cell in row] for row in table.rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([table.title, *lines])
