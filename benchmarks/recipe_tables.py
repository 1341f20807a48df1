"""What of a recipe is published and what is ours: the table of docs/recipes.md, from the comments of the recipes.

Every setting of a recipe that bears on its result ends with a comment: ``# published (SOURCE)``, with what it says
behind the source, or ``# ours``, with the reason and with what others have behind a colon.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
SOURCES = {
    "AST": "https://arxiv.org/abs/2104.01778",
    "AVID-CMA": "https://arxiv.org/abs/2004.12943",
    "AVT": "https://arxiv.org/abs/2401.04154",
    "Auditory SlowFast": "https://arxiv.org/abs/2103.03516",
    "CAV-MAE": "https://arxiv.org/abs/2210.07839",
    "CAV-MAE Sync": "https://arxiv.org/abs/2505.01237",
    "DINO": "https://arxiv.org/abs/2104.14294",
    "EPIC-Sounds": "https://arxiv.org/abs/2302.00646",
    "EZ-VSL": "https://arxiv.org/abs/2203.09324",
    "MAST": "https://arxiv.org/abs/2303.10757",
    "MViTv2": "https://arxiv.org/abs/2112.01526",
    "SS-MAST": "https://arxiv.org/abs/2211.01515",
    "VICReg": "https://arxiv.org/abs/2105.04906",
}
_NAMES = f"(?:{'|'.join(sorted(map(re.escape, SOURCES), key=len, reverse=True))})"
# What a run is of and how it is executed: these do not say how a model is trained.
OF_THE_RUN = re.compile(r"base|data\.(name|num_workers|heads)|head|output|(log|runtime|wandb)\..*")
_LINE = re.compile(r"(?P<indent> *)(?P<item>- )?(?P<body>.*?)(?:\s+# (?P<comment>.*))?")


@dataclass(frozen=True)
class Setting:
    """A line of a recipe.

    Attributes:
        name: dotted.
        value: as it is written.
        comment: behind it, empty where there is none.
    """

    name: str
    value: str
    comment: str

    @property
    def origin(self) -> tuple[str, str]:
        """Whose it is, ``ours`` or names of ``SOURCES``, and what else is said.

        Raises:
            ValueError: nobody's, or that of a source that is not known.
        """
        if own := re.fullmatch(r"ours(?:[:;,] (.*))?", self.comment):
            return "ours", own[1] or ""
        published = re.fullmatch(r"published \((.*?)\)(?:; (.*))?", self.comment)
        known = published and re.fullmatch(rf"({_NAMES}(?:, {_NAMES})*)\b[ :,-]*(.*)", published[1])
        if not published or not known:
            told = f"says {self.comment!r}" if self.comment else "does not say whose it is"
            raise ValueError(
                f"{self.name}: {self.value} {told}; end the line with # ours or # published (SOURCE), one of "
                f"{', '.join(SOURCES)}"
            )
        return known[1], "; ".join(filter(None, (known[2], published[2])))


def settings_of(recipe: Path) -> Iterator[Setting]:
    """The lines of ``recipe`` that say how a model is trained, in their order."""
    groups: list[tuple[int, str]] = []
    for line in recipe.read_text().splitlines():
        found = _LINE.fullmatch(line)
        assert found is not None
        body, depth = found["body"], len(found["indent"]) + (1 if found["item"] else 0)
        if not body or body.startswith("#"):
            continue
        while groups and groups[-1][0] >= depth:
            groups.pop()
        key, _, value = body.partition(":")
        if body.endswith(":"):
            groups.append((depth, key))
            continue
        path = [name for _, name in groups]
        # A term of the loss may have a line for each of its settings.
        if path != ["objectives"] and not (found["item"] and body.startswith("{")):
            path, body = [*path, key], value.strip()
        name = ".".join(path)
        if not OF_THE_RUN.fullmatch(name):
            yield Setting(name, body, found["comment"] or "")


def comparison(results: Path) -> str:
    """A table a recipe that follows somebody, and the names of the others. Nothing is measured: no results are read.

    Raises:
        ValueError: a line does not say whose it is; the message names it and its recipe.
    """
    parts, own = [], []
    for recipe in sorted(CONFIGS.glob("pretrain/*.yaml")) + sorted(CONFIGS.glob("finetune/*.yaml")):
        name = f"{recipe.parent.name}/{recipe.name}"
        rows, followed = ["| setting | value | whose | note |", "| --- | --- | --- | --- |"], False
        for setting in settings_of(recipe):
            try:
                whose, note = setting.origin
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            followed = followed or whose != "ours" or any(source in note for source in SOURCES)
            rows.append(f"| `{setting.name}` | `{setting.value}` | {whose} | {note} |")
        based = re.search(r"^base: (\S+)", recipe.read_text(), re.MULTILINE)
        if not followed and not based:
            own.append(f"`{name}`")
            continue
        heading = f"## {name}" + (f"\n\nAll else is that of `{based[1]}`." if based else "")
        parts.append("\n".join([heading, "", *rows]) if len(rows) > 2 else heading)
    parts.append(f"## Ours as a whole\n\n{', '.join(own)}.")
    return "\n" + "\n\n".join(parts) + "\n"


TABLES = {"published-or-ours": comparison}
