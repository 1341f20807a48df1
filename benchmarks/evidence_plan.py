"""The plan of benchmarks/evidence.py: passes over the data that its time allows, and which learning rates are tried."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import compare, interleave
from evidence_setup import MELS, MODELS, SETS, audio_options

import mast
from avssl.config import DataConfig
from avssl.data.loaders import Loaders
from avssl.data.splits import open_splits
from mast.files import atomic_path

# Tried are the middle ones, and beyond them for as long as the best of those tried is at their edge.
LEARNING_RATES = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3)
FIRST_RATES = (2.5e-4, 5e-4, 1e-3)
# Rates that a model is expected to try.
EXPECTED_RATES = 3.5
# Passes of a run that chooses the learning rate, of those that a test run has.
TUNING_SHARE = 0.5
# Splits on which the untrained models are looked at.
RANDOM_SPLITS = 3
# Seconds of a run beside its clips: start-up, clusters, pictures, report.
OVERHEAD = 8.0


@dataclass
class Plan:
    """What was timed, by set (and model), and what follows.

    Attributes:
        precision: Of training, and of the steps that were timed.
        steps: Median processor-seconds of a training step on one thread, the models in turn.
        speedup: How many times faster MAST's step is, with its range over the rounds.
        decode: Processor-seconds to decode a clip.
        clips: Training and test clips of the first split.
        epochs: Passes over the training clips, of both models.
        minutes: Expected processor time.
    """

    precision: str
    steps: dict[str, dict[str, float]]
    speedup: dict[str, dict[str, Any]]
    decode: dict[str, float]
    clips: dict[str, tuple[int, int]]
    epochs: dict[str, int]
    minutes: dict[str, float]

    def longer(self, name: str) -> int:
        """Passes of MAST whose steps take as long as AST's ``epochs``."""
        return round(self.epochs[name] * self.speedup[name]["speedup"])


def untried(scores: Mapping[float, Any]) -> list[float]:
    """Learning rates to try next, given what the tried ones scored; none once the best is no edge of the tried ones."""
    if missing := [lr for lr in FIRST_RATES if lr not in scores]:
        return missing
    best, place = best_rate(scores), LEARNING_RATES.index
    beside = {min(scores): place(min(scores)) - 1, max(scores): place(max(scores)) + 1}.get(best, -1)
    return [LEARNING_RATES[beside]] if 0 <= beside < len(LEARNING_RATES) else []


def best_rate(scores: Mapping[float, Any]) -> float:
    """The rate with the highest score, the lowest of several."""
    return max(sorted(scores), key=scores.__getitem__)


def make_plan(roots: dict[str, Path], minutes: float, precision: str, file: Path) -> Plan:
    """The plan for the sets in ``roots``; what ``file`` holds already of them stays, so that all runs have one plan.

    Raises:
        ValueError: ``file`` is of another precision.
    """
    plan = Plan(precision, {}, {}, {}, {}, {}, {})
    if file.is_file():
        values = json.loads(file.read_text())
        plan = Plan(**values | {"clips": {name: tuple(clips) for name, clips in values["clips"].items()}})
        if plan.precision != precision:
            raise ValueError(f"{file} is of --precision {plan.precision}: choose another --runs")
    for name, root in roots.items():
        if name not in plan.epochs:
            _measure(plan, name, root)
            _divide(plan, name, 60 * minutes / len(roots))
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(asdict(plan), indent=2) + "\n")
    return plan


def _measure(plan: Plan, name: str, root: Path) -> None:
    torch.set_num_threads(1)
    data = SETS[name]
    calls = {model: _step(model, name, plan.precision) for model in MODELS}
    times = interleave(calls, rounds=9, clock=time.process_time)
    plan.steps[name] = {model: statistics.median(values) for model, values in times.items()}
    plan.speedup[name] = compare(times, "mast", "ast")
    config = DataConfig(name, root, data.splits[data.first], data.seconds, num_workers=0, heads=[data.head])
    for key, value in data.data.items():
        setattr(config, key, value)
    splits = open_splits(config, modalities=("audio",), labelled=True)
    assert splits.test is not None
    plan.clips[name] = len(splits.train), len(splits.test)
    some = splits.train.take(range(min(32, len(splits.train))))
    loader = Loaders(config, splits.protocol, ("audio",), 16000, data.batch, 0).evaluate(some)
    passes = interleave({"decode": lambda: list(loader)}, rounds=2, clock=time.process_time)
    plan.decode[name] = statistics.median(passes["decode"]) / (len(some) * splits.protocol.eval_clips)


def _step(model: str, name: str, precision: str) -> Callable[[], None]:
    """A training step of ``model`` on a batch of noise of the set's size."""
    data = SETS[name]
    module = mast.create_model(MODELS[model][0], num_classes=10, **audio_options(model, data))
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)  # as avssl trains
    x, target = torch.randn(data.batch, 1, MELS, data.frames), torch.zeros(data.batch, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = torch.nn.functional.cross_entropy(module(x), target)
        loss.backward()
        optimizer.step()

    return step


def _divide(plan: Plan, name: str, budget: float) -> None:
    """Passes over ``name`` within ``budget`` seconds: what does not depend on them is taken off first."""
    data, (train, test) = SETS[name], plan.clips[name]
    scored = test * int(data.data.get("eval_clips", 1))
    splits, fixed, each = len(data.splits), 0.0, 0.0
    for model, seconds in plan.steps[name].items():
        clip = seconds / data.batch
        look = plan.decode[name] + clip / 3  # a forward pass is about a third of a step
        runs = 2 * splits if model == "mast" else splits  # of equal passes and of equal time
        fixed += (runs + EXPECTED_RATES) * (2 * scored * look + OVERHEAD)
        fixed += min(splits, RANDOM_SPLITS) * ((train + 2 * scored) * look + OVERHEAD)
        passes = splits + 0.8 * EXPECTED_RATES * TUNING_SHARE
        passes += splits * plan.speedup[name]["speedup"] if model == "mast" else 0
        each += passes * train * (plan.decode[name] + clip)
    plan.epochs[name] = max(2, int((budget - fixed) / each))
    plan.minutes[name] = (fixed + plan.epochs[name] * each) / 60


def plan_lines(plan: Plan, names: Sequence[str]) -> list[str]:
    """The plan in words, a line a set."""
    lines = []
    for name in names:
        data, (train, test) = SETS[name], plan.clips[name]
        steps = ", ".join(f"{model} {seconds:.3f}" for model, seconds in plan.steps[name].items())
        low, high = plan.speedup[name]["speedup_range"]
        passes = f"{plan.epochs[name]} passes ({plan.longer(name)} of mast in the time of ast)"
        lines.append(
            f"{name}: {len(data.splits)} splits of {train} training and {test} test clips, {passes} "
            f"in steps of {data.batch}; processor-seconds a step: {steps} ({plan.speedup[name]['speedup']:.2f}x, "
            f"{low:.2f} to {high:.2f}), to decode a clip: {plan.decode[name]:.3f}; {plan.minutes[name]:.0f} minutes"
        )
    return lines
