"""Says from the size of some data, its sources and a short trial which recipe to take and whether pretraining pays.

The trial pretrains for a few steps, then fits a linear head and trains a full one on the labels, from pretrained and
from random weights, and compares them clip by clip. It is a warning, not a proof: a whole run may do better or worse.

avssl advise --data videos --labelled labels.csv
avssl advise --data demo-sources --steps 150

Its runs are in --output; a stopped one, started again with the same arguments, goes on.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.cli import check_data

# Fewer clips than this are learned by heart by the larger encoders; a rule of thumb of ours.
FEW_CLIPS = 5000
# Memory of a GPU that the recipes base and large are made for, in bytes.
BASE_MEMORY, LARGE_MEMORY = 20e9, 70e9
# Groups below which a hold-out by group says little of others.
FEW_GROUPS = 8
TRIED = ("linear", "full")


def run(given: Namespace) -> int:
    """The command; returns the exit status, 130 where a signal ended the trial."""
    check_data(given.data)
    output = given.output or Path("runs") / f"advise-{Path(given.data).stem}"
    videos = {"name": given.data, "root": given.root, "options": given.options}
    labels = {"name": given.labelled, "root": given.labelled_root, "options": given.labelled_options}
    told = advise(videos, labels if given.labelled else videos, output, given.steps, given.settings)
    sys.stdout.write("".join(f"{line}\n" for line in told["advice"]))
    return 0 if told["finished"] else 130


def advise(
    videos: Mapping[str, Any], labels: Mapping[str, Any], output: Path, steps: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Looks at the data, tries for ``steps`` steps, and writes ``advice.json``.

    Args:
        videos: ``name``, ``root`` and ``options`` of what would be pretrained on.
        labels: the same of what would be fine-tuned on; may have no labels, which leaves the trial out.
        output: folder.
        steps: of each part of the trial; 0 for none.
        settings: of the trial's pretraining, over its recipe.

    Returns:
        ``finished``, ``sizes``, ``recipe``, ``trial`` by head (see :mod:`avssl.evaluation.random_start`), and in
        ``advice`` the lines that it comes to.

    Raises:
        DataError, OSError, ValueError: the message says what is wrong with the data or the settings.
    """
    from avssl.evaluation.result import write_result

    sizes = {"videos": _sizes(videos, pictures=True), "labels": _sizes(labels, pictures=False)}
    recipe = recipe_for(sizes["videos"]["clips"], _gpu_memory())
    told: dict[str, Any] = {"finished": True, "sizes": sizes, "recipe": recipe, "trial": {}}
    if steps and sizes["labels"]["labelled"]:
        told |= _try(videos, labels, output, steps, settings)
    told["advice"] = advice_of(sizes, recipe, told["trial"], steps)
    if told["finished"]:
        output.mkdir(parents=True, exist_ok=True)
        write_result(output / "advice.json", told)
    return told


def recipe_for(clips: int, memory: float | None) -> str:
    """The recipe for so many clips on a GPU of ``memory`` bytes, None for a CPU."""
    if memory is None or memory < BASE_MEMORY or clips < FEW_CLIPS:
        return "small"
    return "base" if memory < LARGE_MEMORY else "large"


def advice_of(sizes: Mapping[str, Any], recipe: str, trial: Mapping[str, Any], steps: int) -> list[str]:
    """What the sizes of the data and the outcome of the trial come to, a line each."""
    videos, labels = sizes["videos"], sizes["labels"]
    lines = [
        f"to pretrain on: {videos['clips']} clips with sound and pictures in all splits, {_grouped(videos)}",
        f"to fine-tune on: {labels['labelled']} labelled clips of {labels['clips']}, {_grouped(labels)}",
        f"recipe: --config {recipe}",
    ]
    if videos["clips"] < FEW_CLIPS:
        lines.append(
            f"fewer than {FEW_CLIPS} clips: pairs are soon learned by heart; hold some out (data.val_fraction, on by "
            "default) and more clips before more passes"
        )
    for what, each in (("--data", videos), ("the labelled data", labels)):
        if each["groups"] == each["clips"]:
            lines.append(
                f"{what}: no two clips are known to share a speaker, a recording or a video: if some do, say so in a "
                "column (speaker, recording, video), or they are on both sides of every split and flatter all numbers"
            )
        elif each["groups"] < FEW_GROUPS:
            lines.append(f"{what}: only {each['groups']} groups: what is held out says little of new ones")
    if not labels["labelled"]:
        return [*lines, "no labels: nothing was tried; give --labelled DATA to see whether pretraining pays"]
    if not steps:
        return [*lines, "nothing was tried (--steps 0)"]
    for head, found in trial.items():
        for name, told in found["heads"].items():
            gain, low, high = (100 * told[key] for key in ("difference", "low", "high"))
            lines.append(
                f"trial, {head} head, {name} {told['metric']}: {told['random']:.1%} from random weights, "
                f"{told['pretrained']:.1%} pretrained, {gain:+.1f} points ({low:+.1f} to {high:+.1f})"
            )
    verdicts = {found["verdict"] for found in trial.values()}
    if "hurts" in verdicts:
        lines.append("pretraining hurts in this trial: start from random weights (--checkpoint none), or try another "
                     "objective; compare again by --compare_random true")  # fmt: skip
    elif "helps" in verdicts:
        lines.append(f"pretraining pays after {steps} steps already: do it, and see by --compare_random true")
    elif verdicts:
        lines.append(f"no difference after {steps} steps: try more (--steps), before a long run")
    return lines


def _grouped(sizes: Mapping[str, Any]) -> str:
    return f"{sizes['groups']} groups" + (f" by {', '.join(sizes['by'])}" if sizes["by"] else "")


def _sizes(data: Mapping[str, Any], *, pictures: bool) -> dict[str, Any]:
    """Usable clips, those with a label of any head, and groups that must not be divided."""
    import numpy as np

    from avssl.data.catalog import open_data
    from avssl.data.strata import row_groups

    rows = open_data(data["name"], root=data["root"], options=data["options"]).usable(audio=True, video=pictures)[0]
    labelled = np.zeros(len(rows), dtype=bool)
    for head in rows.heads:
        labelled |= rows.labelled(head)
    groups, by = row_groups(rows)
    return {"clips": len(rows), "labelled": int(labelled.sum()), "groups": len(np.unique(groups)), "by": by}


def _gpu_memory() -> float | None:
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _try(
    videos: Mapping[str, Any], labels: Mapping[str, Any], output: Path, steps: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Pretrains, then compares both heads with random weights."""
    from avssl import api

    watched = {"wandb.mode": "disabled", "optim.max_steps": steps}
    pretrained = api.pretrain(data=_given(videos), output=output / "pretrain", **{**watched, **settings})
    if not pretrained.finished:
        return {"finished": False}
    same = {key: value for key, value in settings.items() if key.startswith("runtime.")}
    trial: dict[str, Any] = {}
    for head in TRIED:
        where = {"checkpoint": str(pretrained.checkpoint), "head": head, "output": output / head}
        found = api.finetune("small", data=_given(labels), compare_random=True, **where, **watched, **same)
        if not found.finished:
            return {"finished": False}
        trial[head] = found.details["details"]["random_start"]
    return {"trial": trial}


def _given(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value}
