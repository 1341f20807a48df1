"""Every objective under one budget: pretrain, retrieve, probe; on the demo set and on GRID.

    python tools/cache.py --data grid --data.root PATH --output caches/grid --short_side 64
    python benchmarks/objectives.py --grid caches/grid --output benchmarks/results                 # to choose a loss
    python benchmarks/objectives.py --grid caches/grid --output benchmarks/results --split test    # to report on it

By default no result depends on a test clip, so that a loss can be chosen by it: clips are held out of the training
part, and the demo set of seed S is the one that is drawn with S, of which S = 0 is the one that results are reported
on. Retrieval is among held-out clips of pretraining; the probe judges held-out labelled ones.

Each run is the tools' own: ``tools/pretrain.py`` with the same settings but for the objectives, then a linear probe,
with ``--split test`` by ``tools/finetune.py``. The losses of ``--repeat`` are run with every seed, all others with the
first. Runs that are finished are kept, so the command continues where it was stopped. Seconds a step are the median
over the run, decoding included; peak memory is that of the process.
"""

import argparse
import itertools
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cells import ROOT, tool
from common import describe_machine, publish, settings_of

from avssl.evaluation.result import read_result
from mast.files import atomic_path

BATCH = 32

INFONCE: dict[str, Any] = {"name": "infonce"}
# The published ones are for runs that are a thousand times as long.
SHORT_RUN = ["--teacher_momentum", "0.99"]
TWO_TIMES = ["--data.train_clips", "2", "--optim.batch_size", str(BATCH // 2)]


@dataclass
class Candidate:
    """A loss to try: its terms, and command-line options that it needs."""

    terms: list[dict[str, Any]]
    options: list[str] = field(default_factory=list)
    note: str = ""


def term(name: str, weight: float = 1.0, **options: Any) -> dict[str, Any]:
    """One entry of ``--objectives``."""
    return {"name": name, "weight": weight, **options}


CANDIDATES = {
    "infonce": Candidate([INFONCE]),
    "siglip": Candidate([term("siglip")]),
    "ntxent": Candidate([term("ntxent", modality="both")]),
    "moco": Candidate([term("moco", queue=512)], SHORT_RUN),
    "avid": Candidate([term("avid")]),
    "cma": Candidate([term("cma", warmup=2.5, refresh=1.25)]),
    "xdc": Candidate([term("xdc", clusters=32, every=50)]),
    "avc": Candidate([term("avc")], note="uses labels where there are any"),
    "imc": Candidate([term("imc", modality="both")], note="uses labels"),
    "sync": Candidate([term("sync", max_overlap=0.8)], TWO_TIMES),
    "masked": Candidate([term("masked", modality="both")]),
    "distill": Candidate([term("distill", loss="byol", between="both")], SHORT_RUN),
    "barlow": Candidate([term("barlow")]),
    "vicreg": Candidate([term("vicreg")]),
    "infonce + ntxent": Candidate([INFONCE, term("ntxent", 0.5, modality="audio")]),
    "infonce + masked": Candidate([INFONCE, term("masked", 1.0)]),
    "infonce + distill": Candidate([INFONCE, term("distill", 0.5, loss="byol", between="both")], SHORT_RUN),
    "infonce + sync": Candidate([INFONCE, term("sync", 0.5, max_overlap=0.8)], TWO_TIMES),
    "infonce + barlow": Candidate([INFONCE, term("barlow", 0.01)]),
    "infonce + vicreg": Candidate([INFONCE, term("vicreg", 0.05)]),
    "infonce + 0.2 vicreg": Candidate([INFONCE, term("vicreg", 0.2)]),
    "infonce + 0.5 vicreg": Candidate([INFONCE, term("vicreg", 0.5)]),
    "infonce + shared vicreg": Candidate(
        [INFONCE | {"projection": {"norm": False}}, term("vicreg", 0.2, projection="infonce")],
        note="one projection without a final norm",
    ),
    "infonce + former vicreg": Candidate(
        [INFONCE, term("vicreg", 0.5, projection="infonce")],
        note="one projection that ends in a batch norm, the default loss of before: the variance term has no gradient",
    ),
    "infonce + vicreg + ntxent": Candidate([INFONCE, term("vicreg", 0.05), term("ntxent", 0.25, modality="audio")]),
}
NEEDS_LABELS = {"imc"}
SUPERVISED = {"avc", "imc"}
REPEATED = [
    "infonce",
    "infonce + vicreg",
    "infonce + 0.2 vicreg",
    "infonce + 0.5 vicreg",
    "infonce + shared vicreg",
    "infonce + former vicreg",
    "infonce + barlow",
]
# Share of the training clips that a choice is made on, for retrieval and, of labelled ones, for the probe.
HELD_OUT = 0.2


@dataclass
class DataSet:
    """Where a candidate is tried: options of pretraining and of the probe, and what the probe predicts."""

    pretrain: list[str]
    probe: list[str]
    heads: list[str]
    supervised: str | None = None  # the labels that avc and imc learn from
    drawn: bool = False  # anew with every seed
    one_training_part: bool = False  # pretraining and probe learn from the same clips


def data_sets(args: argparse.Namespace) -> dict[str, DataSet]:
    """The demo set, and GRID where its folder is given."""
    sets = {}
    if args.demo_steps:
        sets["demo"] = DataSet(["--optim.max_steps", str(args.demo_steps)], [], ["event"], drawn=True)
    if args.grid:
        settings = ["--config", str(ROOT / "configs/pretrain/grid.yaml"), "--runtime.precision", args.grid_precision]
        # Small frames, and half a video: cheaper, and sync has other times.
        settings += ["--data.num_frames", "8", "--data.frame_size", "56", "--video.crop_size", "48"]
        settings += ["--data.clip_seconds", "1.28", "--time_bins", "4"]
        source = ["--data", str(args.grid)]
        probe = [*source, "--data.heads", "[digit, colour]"]
        sets["grid"] = DataSet(
            [*settings, *source, "--optim.max_steps", str(args.grid_steps)],
            probe,
            ["digit", "colour"],
            "digit",
            one_training_part=True,
        )
    return sets


def scores_on_test(folder: Path, data: DataSet, common: list[str]) -> dict[str, float]:
    """Retrieval among the test clips, and their accuracy by the probe of ``tools/finetune.py``."""
    probe = [*data.probe, *common, "--checkpoint", str(folder / "pretrain"), "--output", str(folder / "probe")]
    tool("finetune", probe, folder / "probe.log")
    retrieval = read_result(folder / "pretrain" / "result.json")["metrics"]
    scores = read_result(folder / "probe" / "result.json")["metrics"]
    return retrieval | {"probe": statistics.mean(scores[f"{head}/top1"] for head in data.heads)}


def scores_on_validation(folder: Path, data: DataSet, seed: int) -> dict[str, float]:
    """Retrieval among clips that pretraining held out, and the accuracy of a probe on labelled clips that are held out
    of its training part. Nothing is computed of a test clip."""
    import torch

    from avssl.checkpoint import run_settings
    from avssl.config import DataConfig
    from avssl.data.loaders import Loaders
    from avssl.data.splits import open_splits
    from avssl.evaluation.embeddings import embed_features, embed_pair
    from avssl.evaluation.probe import linear_probe
    from avssl.evaluation.retrieval import retrieval_metrics
    from avssl.loading import load
    from avssl.saved_runs import read_held_out

    torch.set_num_threads(1)
    run, cpu = folder / "pretrain", torch.device("cpu")
    loaded, held_out = load(run, kind="pair"), read_held_out(run)
    pair = loaded.pair
    assert pair is not None
    rate = pair.frontend.config["sample_rate"]
    config = DataConfig(**run_settings(run)["data"] | {"num_workers": 0, "test_fraction": 0.0})
    splits = open_splits(config, modalities=("audio", "video"), labelled=False, seed=seed, held_out=held_out)
    assert splits.val is not None
    loaders = Loaders(config, splits.protocol, ("audio", "video"), rate, BATCH, seed)
    audio, video = embed_pair(pair, loaders, splits.val, cpu)
    metrics = retrieval_metrics(audio.features, video.features)

    config = replace(config, heads=data.heads)
    same = held_out if data.one_training_part else None
    splits = open_splits(config, modalities=("audio",), labelled=True, seed=seed, held_out=same)
    assert splits.val is not None
    loaders = Loaders(config, splits.protocol, ("audio",), rate, BATCH, seed)
    train, val = (embed_features(loaded.audio_alone(), loaders, rows, cpu) for rows in (splits.train, splits.val))
    right = []
    for head in data.heads:
        found = linear_probe(train, val, head, len(splits.labels[head]), seed=seed).scores.argmax(axis=1)
        right.append(float((found == val.labels[head]).mean()))
    return metrics | {"probe": statistics.mean(right)}


def measure(runs: Path, name: str, data_name: str, data: DataSet, seed: int, split: str) -> dict[str, Any]:
    """Pretrains and probes one candidate; reads the result of an earlier call where there is one."""
    folder = runs / split / f"{data_name}-{name.replace(' + ', '_')}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    candidate = CANDIDATES[name]
    common = ["--runtime.threads", "1", "--data.num_workers", "0", "--wandb.mode", "disabled", "--seed", str(seed)]
    pretrain = ["--optim.batch_size", str(BATCH), "--log.validate_every", "0", *data.pretrain, *candidate.options]
    labels = {"head": data.supervised} if data.supervised else {}
    terms = [each | labels if each["name"] in SUPERVISED else each for each in candidate.terms]
    objectives = ["--objectives", json.dumps(terms)]
    if split == "validation":
        pretrain += ["--data.val_fraction", str(HELD_OUT), "--log.use", "last"]
        pretrain += ["--data.options", json.dumps({"seed": seed})] if data.drawn else []
    start = time.monotonic()
    memory = tool(
        "pretrain", [*pretrain, *objectives, *common, "--output", str(folder / "pretrain")], folder / "pretrain.log"
    )
    validation = split == "validation"
    scores = scores_on_validation(folder, data, seed) if validation else scores_on_test(folder, data, common)
    speeds = [json.loads(line) for line in (folder / "pretrain" / "speed.jsonl").read_text().splitlines()]
    result = {
        "data": data_name,
        "objective": name,
        "seed": seed,
        "split": split,
        "clips": scores["count"],
        "probe": scores["probe"],
        "audio_to_video": scores["audio_to_video/R@1"],
        "video_to_audio": scores["video_to_audio/R@1"],
        "audio_to_video_median_rank": scores["audio_to_video/median_rank"],
        "seconds_per_step": statistics.median(BATCH / row["clips_per_second"] for row in speeds),
        "peak_memory_mb": memory,
        "minutes": (time.monotonic() - start) / 60,
    }
    with atomic_path(done) as temporary:
        temporary.write_text(json.dumps(result))
    return result


def table(rows: list[dict[str, Any]], data_name: str) -> str:
    """Markdown: a line an objective, means over seeds with their standard deviation."""
    lines = [
        f"| {data_name} | linear probe | audio to video R@1 | video to audio R@1 | s/step | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in CANDIDATES:
        mine = [row for row in rows if (row["data"], row["objective"]) == (data_name, name)]
        if mine:
            cells = [_percent([row[key] for row in mine]) for key in ("probe", "audio_to_video", "video_to_audio")]
            cells.append(f"{statistics.mean(row['seconds_per_step'] for row in mine):.2f}")
            cells.append(f"{max(row['peak_memory_mb'] for row in mine):.0f} MB")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    spread = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f} %{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"), help="folder of the runs")
    parser.add_argument("--grid", type=Path, help="cache of GRID; without it, the demo set alone")
    parser.add_argument("--demo-steps", type=int, default=280, help="0 leaves the demo set out")
    parser.add_argument("--grid-steps", type=int, default=480)
    parser.add_argument("--grid-precision", default="bf16-mixed", help="32-true is faster on a CPU without AVX512-BF16")
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="what is measured on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeat", nargs="*", choices=CANDIDATES, default=REPEATED, metavar="OBJECTIVE")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="OBJECTIVE")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()

    sets = data_sets(args)
    jobs = [
        (name, data_name, seed)
        for seed, data_name, name in itertools.product(args.seeds, sets, args.only)
        if seed == args.seeds[0] or name in args.repeat
        if not (name in NEEDS_LABELS and data_name == "demo")  # whose pretraining split has none
    ]
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(args.parallel) as pool:
        futures = [
            pool.submit(measure, args.runs, name, data, sets[data], seed, args.split) for name, data, seed in jobs
        ]
        for (name, data, seed), future in zip(jobs, futures, strict=True):
            row = future.result()
            rows.append(row)
            print(
                f"{data} {name} seed {seed}: probe {row['probe']:.1%}, R@1 {row['audio_to_video']:.1%} / "
                f"{row['video_to_audio']:.1%}, {row['seconds_per_step']:.2f} s/step",
                flush=True,
            )
    for data_name in sets:
        print(f"\n{table(rows, data_name)}")
    publish(
        args,
        "_".join(["objectives", *sets, *(["validation"] if args.split == "validation" else [])]),
        "objectives",
        describe_machine(),
        settings_of(args) | {"grid": bool(args.grid)},
        objectives={name: candidate.terms for name, candidate in CANDIDATES.items()},
        notes={name: candidate.note for name, candidate in CANDIDATES.items() if candidate.note},
        rows=rows,
    )


if __name__ == "__main__":
    main()
