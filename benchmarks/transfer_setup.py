"""What benchmarks/transfer.py runs: the sets, their hold-outs by group, and the options of every run."""

import json
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cells import Cell
from evidence_setup import SETS as REAL
from evidence_setup import SPEAKERS, DataSet
from few_labels import architecture

# A hold-out of its own for validation where the set has none, whole groups of it: what is selected is selected there.
VAL = ["--data.val_fraction", "0.2"]
MASKS = ["--augment.time_mask", "0.1", "--augment.freq_mask", "0.1"]
ANY = {f"draw{k}": {} for k in range(10)}  # sets with a test split of their own: a draw is a seed
SETS: dict[str, DataSet] = {
    "demo": DataSet("event", 1.2, 16, ANY, {}, {}),
    "demo-sources": DataSet("content", 1.6, 16, ANY, {}, {}),
    "voices": DataSet(
        "word",
        1.04,
        16,
        {"-".join(pair): {"held_out_speakers": [*pair]} for pair in zip(SPEAKERS[::2], SPEAKERS[1::2], strict=True)},
        {},
        {},
    ),
    **REAL,
}
# Sets with sound and pictures, that can be pretrained on.
SEEN = ("demo", "demo-sources", "voices", "grid")
# Sets that are made of another, whose folder they need.
MADE_OF = {"voices": "fsdd"}
# Sets without a recipe of their own are pretrained on by another's.
BORROWED = {
    "voices": [
        *("--config", "grid", "--optim.epochs", "20"),
        *("--data.num_frames", "8", "--data.frame_size", "56", "--video.crop_size", "48"),
    ]
}
PLUGINS = {"voices": ["--import", str(Path(__file__).with_name("voices.py"))]}
# Who or what a clip is of, as a column of the manifest: what is probed beside the class.
IDENTITY = {name: "speaker" for name in ("demo-sources", "voices", "fsdd", "grid")}


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        rows: sets that are pretrained on.
        columns: sets that are fine-tuned on.
        roots: folders of the sets that need one.
        options: options of sets, over those of their splits.
        recipes: options of ``tools/pretrain.py`` by the name of the recipe; the set's own recipe stands below them.
        shares: of the labels.
        full_shares: those of a full head; None: the same.
        heads: linear, full.
        draws: seeds of pretraining, of the labels and of fine-tuning, and splits where the set has several.
        steps: of a full fine-tuning, whatever its share.
        rates: learning rates of a full fine-tuning; the best in validation counts, for each start alone.
        finetune: further options of every fine-tuning.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    roots: dict[str, Path] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=lambda: {"recipe": ""})
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.3, 1.0)
    full_shares: tuple[float, ...] | None = None
    heads: tuple[str, ...] = ("linear", "full")
    draws: int = 3
    steps: int = 240
    rates: tuple[float, ...] = (5e-4,)
    finetune: str = ""

    def split(self, name: str, draw: int) -> dict[str, Any]:
        """Options of a set in a draw: which fold, speaker or clips are its test."""
        splits = list(SETS[name].splits.values())
        return splits[draw % len(splits)] | self.options.get(name, {})

    def root(self, name: str) -> Path | None:
        """Folder of a set, or of what it is made of; None of one that needs none."""
        return self.roots.get(MADE_OF.get(name, name))

    def data(self, name: str, draw: int) -> list[str]:
        """Options of any run on a set."""
        root = self.root(name)
        where = ["--data.root", str(root)] if root else []
        options = ["--data.options", json.dumps(self.split(name, draw)), "--seed", str(draw)]
        return [*PLUGINS.get(name, []), "--data", name, *where, *options]

    def shares_of(self, head: str) -> tuple[float, ...]:
        """Shares of the labels that such a head is trained on."""
        return self.full_shares if head == "full" and self.full_shares is not None else self.shares

    def starts(self) -> list[tuple[str, str, str]]:
        """Name, set and recipe of every pretraining."""
        return [(start_name(recipe, row), row, recipe) for recipe in self.recipes for row in self.rows]

    def pretraining(self) -> list[Cell]:
        """Every pretraining: the test of its draw, and by it of its columns, has no part in it."""
        return [
            Cell(
                f"pretrain:{name}:draw{draw}",
                (
                    *BORROWED.get(row, ["--config", row]),
                    *("--data.val_fraction", "0.1", *self.data(row, draw)),
                    *shlex.split(self.recipes[recipe]),
                ),
                {"kind": "pretrain", "from": name, "row": row, "recipe": recipe, "draw": draw},
                "pretrain",
            )
            for name, row, recipe in self.starts()
            for draw in range(self.draws)
        ]

    def tuning(self, runs: Path) -> list[Cell]:
        """Every fine-tuning from the pretrainings that are finished, and from random weights of their architectures."""
        done = {
            cell.about["from"]: cell for cell in self.pretraining() if (cell.folder(runs) / "measured.json").is_file()
        }
        random: dict[str, tuple[str, ...]] = {}
        partner: dict[str, str] = {}
        for name, cell in done.items():
            options = tuple(architecture(cell.folder(runs) / "run"))
            known = next((each for each, other in random.items() if other == options), f"random{len(random) or ''}")
            random[known], partner[name] = options, known
        cells = []
        for draw in range(self.draws):
            begins = {name: ("--checkpoint", "none", *options) for name, options in random.items()}
            begins |= {
                cell.about["from"]: ("--checkpoint", str(cell.folder(runs) / "run"))
                for cell in self.pretraining()
                if cell.about["draw"] == draw and (cell.folder(runs) / "measured.json").is_file()
            }
            cells += [
                cell
                for column in self.columns
                for start, begin in begins.items()
                for cell in self._tuned(column, start, partner.get(start), begin, draw)
            ]
        return cells

    def _tuned(self, column: str, start: str, partner: str | None, begin: tuple[str, ...], draw: int) -> list[Cell]:
        data, cells = SETS[column], []
        common = ["--config", "none", *MASKS, *VAL, "--data.clip_seconds", str(data.seconds), *self.data(column, draw)]
        common += ["--data.heads", f"[{data.head}]", "--optim.batch_size", str(data.batch)]
        settings = {**{f"data.{key}": value for key, value in data.data.items()},
                    **{f"augment.{key}": value for key, value in data.augment.items()}}  # fmt: skip
        whole = settings.pop("data.train_fraction", 1.0)
        for key, value in settings.items():
            common += [f"--{key}", str(value)]
        common += shlex.split(self.finetune)
        for head in self.heads:
            for share in self.shares_of(head):
                about = {"kind": "tune", "column": column, "from": start, "partner": partner, "head": head}
                about |= {"share": share, "draw": draw, "label": data.head}
                options = [*common, *begin, "--head", head, "--data.train_fraction", str(share * whole)]
                name = f"{column}:{start}:{head}:{share:g}:draw{draw}"
                if head == "linear":
                    cells.append(Cell(name, tuple(options), about))
                    continue
                options += ["--optim.max_steps", str(self.steps), "--log.validate_every", str(max(1, self.steps // 6))]
                cells += [
                    Cell(f"{name}:lr{lr:g}", (*options, "--optim.lr", str(lr)), about | {"lr": lr}) for lr in self.rates
                ]
        return cells

    def count(self) -> tuple[int, int, int]:
        """Numbers of pretrainings, linear and full fine-tunings, with one random start of all architectures."""
        each = self.draws * len(self.columns) * (len(self.starts()) + 1)
        linear, full = (each * len(self.shares_of(head)) * (head in self.heads) for head in ("linear", "full"))
        return self.draws * len(self.starts()), linear, full * len(self.rates)

    def shortened(self) -> "Study":
        """One draw of everything, to be timed."""
        return replace(self, draws=1)


def start_name(recipe: str, row: str) -> str:
    """Name of a pretrained start in names of cells and tables."""
    return row if recipe == "recipe" else f"{recipe}-{row}"
