"""The tables of a page, from the results in a folder, each written between two markers that name it.

    python benchmarks/table.py docs/speed.md
    python benchmarks/table.py docs/results.md
    python benchmarks/table.py docs/recipes.md

``speed`` has the goals: every goal keeps its row, met or missed; one without a result says so, and a missed one why.
The other tables are in result_tables.py and recipe_tables.py. Nothing is measured here: commands that do stand beside
the tables.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import recipe_tables
import result_tables

from mast.files import atomic_path

RESULTS = Path(__file__).parent / "results"
HEADER = ("what", "goal", "measured (range)", "met", "on", "command")


class Measured(NamedTuple):
    """A value, its smallest and largest over the rounds where they are known, and what should stand beside it."""

    value: float
    spread: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """A row of the table.

    Attributes:
        what: is measured.
        bound: the goal; the value should be ``at least`` or at most that.
        percent: values are shares, written as such; others are written as factors.
        files: pattern of the result's name; each file that fits is a row.
        read: the result -> what was measured.
        command: writes the result.
        reason: why it is missed, where it is.
    """

    what: str
    bound: float
    files: str
    read: Callable[[Any], Measured]
    command: str
    at_least: bool = True
    percent: bool = False
    reason: str = ""

    def show(self, value: float) -> str:
        """As a percentage or as a factor."""
        return f"{100 * value:.3g} %" if self.percent else f"{value:.3g}x" if value < 100 else f"{value:.0f}x"

    def met(self, value: float) -> bool:
        """Whether it is as good as the goal."""
        return value >= self.bound if self.at_least else value <= self.bound


def peer(part: str) -> Callable[[Any], Measured]:
    """Speed-up of ``part``, or of the whole result for ''."""

    def read(result: Any) -> Measured:
        row = result[part] if part else result
        shares = row.get("mfu", [None])
        note = "" if shares[0] is None else f"MFU {100 * shares[0]:.0f} %, AST {100 * shares[1]:.0f} %"
        return Measured(row["speedup"], tuple(row["speedup_range"]), note)

    return read


def block(size: str, other: str) -> Callable[[Any], Measured]:
    """A training step of a block against a peer's."""

    def read(result: Any) -> Measured:
        inference = result["sizes"][size][f"inference vs {other}"]["speedup"]
        row = result["sizes"][size][f"train vs {other}"]
        return Measured(row["speedup"], tuple(row["speedup_range"]), f"inference {inference:.2f}x")

    return read


def loss(name: str) -> Callable[[Any], Measured]:
    def read(result: Any) -> Measured:
        row, clips = result["losses"][name], result["settings"]["clips"]
        note = f"{clips} clips; peak {row['peak_mib']:.0f} against {row['peer_peak_mib']:.0f} MiB"
        return Measured(row["speedup"], tuple(row["speedup_range"]), note)

    return read


def loader_against(other: str) -> Callable[[Any], Measured]:
    def read(result: Any) -> Measured:
        row = result["vs_peers"][other]
        return Measured(row["ratio"], tuple(row["range"]), f"{other} {result['versions'][other]}")

    return read


def memory(result: Any) -> Measured:
    row = result["train_peak_mib"]
    return Measured(row["ours"] / row["peer"], None, f"{row['ours']:.0f} of {row['peer']:.0f} MiB")


def peak_share(result: Any) -> Measured:
    row = result["shares"]["fp32"]
    return Measured(row["ours"], None, f"AST {100 * row['ast']:.0f} % of {row['peak_gflops']:.0f} GFLOP/s")


def loading(part: str) -> Callable[[Any], Measured]:
    return lambda result: Measured(result[part]["ratio"], tuple(result[part]["range"]))


def scaling(result: Any) -> Measured:
    """The worst of the numbers of workers."""
    shares = {workers: row["share_of_linear"] for workers, row in result["scaling"].items()}
    shown = ", ".join(f"{workers}: {100 * share:.0f} %" for workers, share in shares.items())
    return Measured(min(shares.values()), None, f"workers {shown}; {result['machine']['cores']} cores")


def folder(result: Any) -> Measured:
    row, settings = result["result"], result["settings"]
    note = f"{Path(settings['media']).name}, {' and '.join(row['modalities'])}, workers: {settings['workers']}"
    return Measured(row["share"], tuple(row["speedup_range"]), note)


def pretraining(part: str) -> Callable[[Any], Measured]:
    """Of the fastest setting."""

    def read(result: Any) -> Measured:
        best = max(result["runs"], key=lambda run: run["clips_per_second"])
        note = f"{best['clips_per_second']:.0f} clips/s, batch {best['batch']}, {best['peak_mib'] / 1024:.0f} GiB"
        note += "" if best["mfu"] is None else f", MFU {100 * best['mfu']:.0f} %"
        return Measured(best[part], None, note)

    return read


def length(result: Any) -> Measured:
    best = min(row["excess"] for row in result["rows"])
    frames = [row["frames"] for row in result["rows"]]
    return Measured(result["worst"], (best, result["worst"]), f"{min(frames)} to {max(frames)} frames")


TO = "--output benchmarks/results"
PEER = "python benchmarks/mast_vs_ast.py --device cpu"
FP32, BF16 = "mast_vs_ast_mast_base_cpu_fp32*", "mast_vs_ast_mast_base_cpu_bf16*"
FRONTEND, LOADING = f"python benchmarks/frontend.py --device cpu {TO}", f"python benchmarks/loading.py {TO}"
LENGTH = "python benchmarks/length.py --device cpu"
EAGER = f"python benchmarks/gpu_pretraining.py --data CACHE --batch 40 --eager --windows 4 --window 6 {TO}"
BLOCKS = f"python benchmarks/blocks.py {TO}"
STEP, RUN = "MAST-B, training step against Hugging Face's AST", "MAST-B, inference against Hugging Face's AST"
ARITHMETIC = (
    "MACs are 4.96x fewer, so 5x asks for a higher rate than AST's large products have (78 against 85 % of peak on the "
    "EPYC)"
)
HALF = (
    "pooling, softmax, GELU and casts between the products take three tenths of the time, and six where AMX computes "
    "the products"
)
LAUNCHES = "the processor launches 4000 kernels a step more slowly than the GPU works them off"
GOALS = [
    Goal(f"{STEP}, float32", 5.0, FP32, peer("train"), f"{PEER} {TO}", reason=ARITHMETIC),
    Goal(f"{STEP}, bf16", 5.0, BF16, peer("train"), f"{PEER} --precision bf16 {TO}", reason=HALF),
    Goal(f"{RUN}, float32", 5.0, FP32, peer("inference"), f"{PEER} {TO}", reason=ARITHMETIC),
    Goal(f"{RUN}, bf16", 5.5, BF16, peer("inference"), f"{PEER} --precision bf16 {TO}", reason=HALF),
    Goal("Peak memory of training against AST", 1 / 3, FP32, memory, f"{PEER} {TO}", at_least=False, percent=True,
         reason="weights and moments are 0.6 GB, values kept 0.8, heap between blocks of other sizes 0.6"),
    Goal("MAST-B, share of the cores' peak of matrix products, inference, float32", 0.7, "peak_mast_base_cpu",
         peak_share, f"python benchmarks/peak.py --device cpu {TO}", percent=True),
    Goal("MAST-B, time beyond what multiply-accumulates say, inference", 1.3, "length_mast_base_cpu_fp32_inference*",
         length, f"{LENGTH} --rounds 8 {TO}", at_least=False,
         reason="one clip of 256 frames takes 0.07 s, and 0.04 s even of 64: weights are read, operators called"),
    Goal("MAST-B, the same for a training step", 1.3, "length_mast_base_cpu_fp32_train*", length,
         f"{LENGTH} --part train --batch 4 --rounds 2 {TO}", at_least=False,
         reason="at 8192 frames scores are computed again on the way back; at 256 the step of the weights, which is "
                "the same for any length, counts"),
    Goal("Log-mel against torchaudio's loop over clips", 8.0, "frontend_cpu", peer(""), FRONTEND),
    Goal("Log-mel on a GPU against that loop on its CPU", 100.0, "frontend_cuda", peer(""),
         f"python benchmarks/frontend.py --device cuda {TO}",
         reason="it is 20 small kernels, launched one by one: of 0.9 ms the GPU works 0.4; compiled it takes 0.34"),
    Goal("Log-mel compiled, on a GPU, against that loop", 100.0, "frontend_cuda_compiled", peer(""),
         f"python benchmarks/frontend.py --device cuda --compile {TO}"),
    Goal("Loader against bare decoding", 0.95, "loading", loading("loader_vs_bare"), LOADING, percent=True,
         reason="collating and handing over take 1 of 130 ms a clip; what else is missing is noise of runs of seconds"),
    Goal("Loader of shards against bare reading of them", 0.95, "loading", loading("cached_loader_vs_bare"), LOADING,
         percent=True, reason="a cached clip takes 4 ms to decode, 0.7 to collate and hand over, 0.2 in this process"),
    *(Goal(f"Loader of originals against one of {other} alone", 1.0, "loading", loader_against(other), LOADING)
      for other in ("pyav", "decord", "torchcodec")),
    Goal("Cache against originals of 720p", 20.0, "loading", loading("cache_vs_originals"), LOADING),
    Goal("Loader of shards, share of linear scaling", 0.9, "loading", scaling, LOADING, percent=True,
         reason="the training process needs its share of the cores, too, and more workers than cores take turns"),
    Goal("Embedding of a folder against bare decoding", 0.9, "inference_folder_*", folder,
         f"python benchmarks/inference.py folder --media FOLDER {TO}", percent=True,
         reason="beside the model, which has the other core, decoding is a tenth slower"),
    *(Goal(f"A block of MAST-B's {stage} against {other}'s, training", 1.0, "blocks_cpu", block(stage, other), BLOCKS,
           reason="its norms and pooling are computed again in the backward pass, to keep less")
      for stage in ("stage 1", "stage 3") for other in ("timm", "torchvision")),
    *(Goal(f"Loss {name} against lightly's NTXentLoss", 1.0, "loss_cpu", loss(name), f"python benchmarks/loss.py {TO}")
      for name in ("infonce", "siglip")),
    Goal(f"{STEP}, bf16, operator by operator, GPU", 4.5, "mast_vs_ast_mast_base_cuda_bf16", peer("train"),
         f"python benchmarks/mast_vs_ast.py --device cuda --batch 32 --only train --rounds 10 {TO}", reason=LAUNCHES),
    Goal(f"{STEP}, bf16, both compiled, GPU", 4.5, "mast_vs_ast_mast_base_cuda_bf16_compiled", peer("train"),
         f"python benchmarks/mast_vs_ast.py --device cuda --compile --batch 32 --only train --rounds 20 {TO}",
         reason="the processor is still waited for, and it had other work: another process compiled beside this one"),
    Goal("Pretraining on a GPU: share of the time that it works", 0.95, "pretraining_cuda", pretraining("busy"), EAGER,
         percent=True, reason=f"run operator by operator: {LAUNCHES}"),
    Goal("Pretraining on a GPU: share of the time that it waits for data", 0.03, "pretraining_cuda",
         pretraining("data_wait"), EAGER, at_least=False, percent=True),
]  # fmt: skip


def machine_of(result: Any) -> str:
    """Device and version of torch, and the revision that was measured."""
    machine = result["machine"]
    device = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    device += ", freed memory kept" if result.get("settings", {}).get("keep_memory") else ""
    return f"{device}; torch {machine['torch']}; {machine['date'][:10]}, {machine['revision']}"


def rows_of(goal: Goal, results: Path) -> list[tuple[str, ...]]:
    """A row for each result of the goal, or the one that says that there is none.

    Raises:
        ValueError: a result without a field that is needed.
    """
    wanted = f"at {'least' if goal.at_least else 'most'} {goal.show(goal.bound)}"
    rows = []
    for path in sorted(results.glob(f"{goal.files}.json")):
        result = json.loads(path.read_text())
        try:
            found, machine = goal.read(result), machine_of(result)
        except KeyError as error:
            raise ValueError(f"{path}: has no field {error}, which the row {goal.what!r} needs; run it again") from None
        shown = goal.show(found.value)
        if found.spread is not None:
            shown += f" ({goal.show(found.spread[0])} to {goal.show(found.spread[1])})"
        shown += f"; {found.note}" if found.note else ""
        met = "yes" if goal.met(found.value) else f"no: {goal.reason}" if goal.reason else "no"
        rows.append((goal.what, wanted, shown, met, machine, f"`{goal.command}`"))
    return rows or [(goal.what, wanted, "not measured yet", "", "", f"`{goal.command}`")]


def table(results: Path = RESULTS) -> str:
    """The table in Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *(row for goal in GOALS for row in rows_of(goal, results))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[Path], str]] = {"speed": table, **result_tables.TABLES, **recipe_tables.TABLES}


def filled(page: str, results: Path = RESULTS) -> str:
    """``page`` with every table between its markers, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        ValueError: there is none, a name is unknown, or a marker stands alone or twice.
    """
    markers = re.findall(r"<!-- (\S+): (begin|end) -->", page)
    names = [name for name, side in markers if side == "begin"]
    if not names or markers != [(name, side) for name in names for side in ("begin", "end")]:
        told = "the page needs the lines <!-- NAME: begin --> and <!-- NAME: end --> with a table between them"
        raise ValueError(f"{told}; it has {', '.join(' '.join(marker) for marker in markers) or 'none'}")
    if unknown := [name for name in names if name not in TABLES or names.count(name) > 1]:
        raise ValueError(f"no table, or one too many, has the name {unknown[0]!r}; there are {', '.join(TABLES)}")
    for name in names:
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n{TABLES[name](results)}\n{end}{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="Markdown with markers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON results")
    args = parser.parse_args()
    try:
        text = filled(args.page.read_text(), args.results)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{args.page}: {error}") from None
    with atomic_path(args.page) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
