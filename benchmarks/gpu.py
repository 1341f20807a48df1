"""All that needs a GPU, in one go: results as JSON in a folder, and a short table.

    python benchmarks/gpu.py FOLDER

- MAST-B against Hugging Face's AST, both compiled, bf16, a training step: ``mast_vs_ast.py --compile --only train``.
  Compiling takes minutes; one call of this script can be shared out over several by ``--parts``.
- the log-mel on the GPU, also compiled, against torchaudio's loop on the CPU: ``frontend.py``.
- pretraining of MAST-B and MViTv2-S (16 frames of 224 x 224, clips of 10 s) from shards made here, compiled, bf16, with
  and without activation checkpointing: ``gpu_pretraining.py``, at the largest batch that fits. It is found from what
  two small batches take in eager mode; where it does not fit after all, four fifths of it are tried, and so on.

Each part checks first that it computes the same as float32. ``--tiny --device cpu`` tries the script out.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import describe_machine, publish

from avssl.data.catalog import open_data
from avssl.data.shards.encode import Settings
from avssl.data.shards.write import write_cache

HERE = Path(__file__).parent


class OutOfMemoryError(Exception):
    """A setting needs more memory than the GPU has."""


def script(name: str, *options: Any) -> str:
    """Output of a script beside this one.

    Raises:
        OutOfMemoryError: it ended for want of the GPU's memory.
        RuntimeError: it failed otherwise.
    """
    command = [sys.executable, str(HERE / name), *(str(option) for option in options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "OutOfMemoryError" in done.stderr:
        raise OutOfMemoryError(" ".join(command))
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def make_cache(place: Path, args: argparse.Namespace) -> Path:
    """Shards of as many samples as ``--samples``, copies of a few videos of 720p."""
    from loading_sources import make_sources

    media = make_sources(place / "media", min(8, args.samples), 3.0 if args.tiny else 12.0)
    sources = sorted(media.iterdir())
    for number in range(args.samples - len(sources)):
        shutil.copy(sources[number % len(sources)], media / f"copy-{number}.mp4")
    cache = place / "cache"
    write_cache(open_data(str(media), progress=False), str(cache), Settings(40 if args.tiny else 256), progress=False)
    return cache


def pretraining(cache: Path, batch: int, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    common = ["--data", cache, "--batch", batch, "--workers", args.workers, "--device", args.device]
    common += ["--tiny"] if args.tiny else []
    return json.loads(script("gpu_pretraining.py", *common, *options).splitlines()[-1])


def largest_batch(cache: Path, args: argparse.Namespace, *options: str) -> int:
    """What should fit into nine tenths of the memory, if a clip takes what it takes in small batches."""
    if args.device != "cuda":
        return 4
    short = [*options, "--eager", "--windows", "3", "--window", "2"]
    low, high = (pretraining(cache, batch, args, *short)["peak_mib"] for batch in (8, 16))
    clip = (high - low) / 8
    total = torch.cuda.get_device_properties(args.device).total_memory / 2**20
    return max(8, min(args.samples, int((0.9 * total - (low - 8 * clip)) / clip)) // 8 * 8)


def largest_pretraining(cache: Path, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    batch = largest_batch(cache, args, *options)
    while True:
        try:
            return pretraining(cache, batch, args, *options, *(["--eager"] if args.tiny else []))
        except OutOfMemoryError:
            if batch == 1:
                raise
            batch = max(1, 4 * batch // 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="FOLDER", help="where the JSON results go")
    parser.add_argument("--batch", type=int, default=32, help="of MAST against AST")
    parser.add_argument("--samples", type=int, default=256, help="of the cache; the largest batch has no more")
    parser.add_argument("--workers", type=int, default=12, help="processes that load")
    parser.add_argument("--parts", nargs="+", choices=("ast", "frontend", "pretraining"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script out")
    args = parser.parse_args()
    parts = args.parts or ["ast", "frontend", "pretraining"]
    machine, to = describe_machine(args.device), ["--device", args.device, "--output", args.output]
    if "ast" in parts:
        small = ["--model", "mast_pico", "--frames", 64, "--rounds", 1] if args.tiny else ["--compile"]
        common = ["--precision", "bf16", "--batch", args.batch, "--only", "train"]
        print(script("mast_vs_ast.py", *common, *small, *to), flush=True)
    if "frontend" in parts:
        small = ["--batch", 2, "--rounds", 1] if args.tiny else []
        for options in ([], ["--compile"]):
            print(script("frontend.py", *small, *options, *to), flush=True)
    if "pretraining" in parts:
        with tempfile.TemporaryDirectory() as place:
            cache = make_cache(Path(place), args)
            runs = [largest_pretraining(cache, args, *options) for options in ([], ["--checkpoint-activations"])]
        for run in runs:
            print(", ".join(f"{key}: {round(v, 3) if isinstance(v, float) else v}" for key, v in run.items()))
        publish(args, f"pretraining_{args.device}", "pretraining", machine, runs=runs)


if __name__ == "__main__":
    main()
