"""What benchmarks/evidence.py compares: two models, three data sets, and the settings that all runs share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mast.complexity import measure

MELS = 64
# As far apart as MAST-B and AST-B: 42 % fewer parameters, 5.2 times fewer multiply-accumulates.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mast": ("mast_pico", {"embed_dim": 24, "depths": [1, 2, 4, 3]}),
    "ast": ("ast_base", {"embed_dim": 144, "depth": 12, "heads": 3}),
}
# No recipe of a data set: both models are trained with the same settings.
COMMON = [
    *("--config", "none", "--checkpoint", "none", "--log.checkpoint_every", "0", "--augment.gain_db", "6"),
    *("--augment.noise_db", "20", "--augment.time_mask", "0.1", "--augment.freq_mask", "0.1"),
]
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


@dataclass(frozen=True)
class DataSet:
    """A data set of the comparison.

    Attributes:
        head: What is classified.
        seconds: Length of a clip.
        batch: Clips a step.
        splits: Options of the data set by the name of the split.
        data: Further settings of its ``data``.
        augment: Settings of its ``augment``.
    """

    head: str
    seconds: float
    batch: int
    splits: dict[str, dict[str, Any]]
    data: dict[str, float]
    augment: dict[str, float]

    @property
    def frames(self) -> int:
        """Frames of a clip's spectrogram: windows of 25 ms every 10 ms."""
        return int((self.seconds - 0.025) / 0.01) + 1

    @property
    def first(self) -> str:
        """The first split, on whose training clips learning rates are chosen."""
        return next(iter(self.splits))


SETS = {
    "esc10": DataSet(
        head="sound",
        seconds=1.28,
        batch=16,
        splits={f"fold{k}": {"fold": k} for k in range(1, 6)},
        data={"eval_clips": 4},  # all of the 5 s
        augment={"time_shift": 0.5, "spec_warp": 0.5},
    ),
    "fsdd": DataSet(
        head="digit",
        seconds=1.0,
        batch=16,
        splits={name: {"held_out_speakers": [name]} for name in SPEAKERS},
        data={"train_fraction": 0.2},  # 50 clips a digit: all of them would take the time of the other two sets
        augment={"time_shift": 0.1, "spec_warp": 0.6},
    ),
    "grid": DataSet(
        head="digit",
        seconds=2.56,
        batch=8,
        splits={f"draw{k}": {"test_clips": 100, "seed": k} for k in range(3)},
        data={},
        augment={"spec_warp": 0.3},
    ),
}


def audio_options(model: str, data: DataSet) -> dict[str, Any]:
    """Keyword arguments of the model for this set's spectrograms."""
    return MODELS[model][1] | {"mels": MELS, "frames": data.frames}


def arguments(name: str, model: str, split: str, root: Path, precision: str) -> list[str]:
    """What every run of ``model`` on ``split`` of the set ``name`` has."""
    data = SETS[name]
    out = ["--data", name, "--data.root", str(root), "--data.options", json.dumps(data.splits[split])]
    out += ["--data.heads", f"[{data.head}]", "--data.clip_seconds", str(data.seconds)]
    out += ["--audio.model", MODELS[model][0], "--audio.options", json.dumps(audio_options(model, data))]
    out += ["--audio.num_mels", str(MELS), "--optim.batch_size", str(data.batch), "--runtime.precision", precision]
    for part, settings in (("data", data.data), ("augment", data.augment)):
        for key, value in settings.items():
            out += [f"--{part}.{key}", str(value)]
    return [*out, *COMMON]


def sizes() -> dict[str, dict[str, dict[str, int]]]:
    """Parameters and multiply-accumulates, attention included, of every model on one clip of every set."""
    out: dict[str, dict[str, dict[str, int]]] = {}
    for name, data in SETS.items():
        for model, (registered, _) in MODELS.items():
            count = measure(registered, num_classes=10, **audio_options(model, data))
            out.setdefault(name, {})[model] = {"parameters": count.parameters, "macs": count.total_macs}
    return out
