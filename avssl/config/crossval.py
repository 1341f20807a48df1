"""The config of cross-validation: fine-tuning's, and how to divide the data."""

from collections.abc import Sequence
from dataclasses import dataclass

from avssl.config.runs import FinetuneConfig


@dataclass
class CrossvalConfig(FinetuneConfig):
    """Fine-tuning once per fold; every option of avssl finetune holds for each fold.

    Args:
        folds: official: the folds that the data set comes with. A number: as many random folds with equal shares of
            every class, drawn with the seed. OPTION=VALUES: a fold for each value of an option of the data set, for
            example fold=1..5 or held_out_speakers=[[george],[jackson]].
        group_by: Column or label head of the data whose values stay together: each value is the test split once, or,
            with a number of folds, the values are dealt out to that many folds.
        seeds: Seeds of the repetitions of all folds; default: seed alone.
    """

    folds: int | str = "official"
    group_by: str | None = None
    seeds: list[int] | None = None


def crossval_arguments(argv: Sequence[str]) -> list[str]:
    """``argv`` as the parser takes it: ``--seeds 0 1 2`` becomes ``--seeds [0,1,2]``, ``--group-by`` ``--group_by``."""
    out: list[str] = []
    rest = ["--group_by" + argument[10:] if argument.startswith("--group-by") else argument for argument in argv]
    while rest:
        out.append(rest.pop(0))
        if out[-1] == "--seeds":
            values = []
            while rest and rest[0].lstrip("-").isdecimal():
                values.append(rest.pop(0))
            if values:
                out.append(f"[{','.join(values)}]")
    return out
