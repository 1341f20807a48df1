"""What MAST costs at any length: time against the multiply-accumulates that it needs, relative to one length.

    python benchmarks/length.py --output benchmarks/results
    python benchmarks/length.py --part train --frames 256 1024 4096 --output benchmarks/results

The model is first checked against its written-out formula in float64, at 1.5 times the length ``--base``. ``excess``
is how many times more the time grows (or less it shrinks) than the multiply-accumulates do, from that length; the goal
is at most 1.3 everywhere. Lengths are timed in turn, and the shortest call of each counts: the rest is other work on
the machine.
"""

import argparse
from typing import Any

import torch
from common import add_run_options, describe_machine, interleave, publish
from mast_vs_ast import CLASSES, build, check, inference, training_step

from mast.complexity import measure

GOAL = 1.3


def table(macs: dict[int, int], times: dict[str, list[float]], base: int) -> list[dict[str, Any]]:
    """One row a length: how many times the time and the MACs of ``base`` it takes."""
    rows = []
    for frames, count in macs.items():
        seconds, growth = min(times[str(frames)]), count / macs[base]
        slower = seconds / min(times[str(base)])
        rows.append(
            {
                "frames": frames,
                "seconds": round(seconds, 5),
                "gmacs": round(count / 1e9, 2),
                "macs_ratio": round(growth, 3),
                "time_ratio": round(slower, 3),
                "excess": round(slower / growth, 3),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("frames  seconds   GMACs  MACs    time    time / MACs")
    for row in rows:
        print(
            f"{row['frames']:6d} {row['seconds']:8.3f} {row['gmacs']:7.2f} {row['macs_ratio']:6.2f}x "
            f"{row['time_ratio']:6.2f}x {row['excess']:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mast_base", help="one of mast.list_models()")
    parser.add_argument("--part", choices=("inference", "train"), default="inference")
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--base", type=int, default=1024, help="the length that others are compared with")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--mels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    add_run_options(parser)
    args = parser.parse_args()
    if args.keep_memory:
        from avssl.training.launch import keep_freed_memory

        keep_freed_memory()
    args.precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")
    lengths = sorted({*args.frames, args.base})

    machine = describe_machine(args.device)
    error = check(args.model, args.mels, args.base + args.base // 2, args.device)
    print(f"float32 against the written-out formula in float64: relative difference {error:.1e}")
    if not error <= 1e-4:
        raise SystemExit("the fast model is wrong; not timing it")
    make = training_step if args.part == "train" else inference
    model = build(args.model, args.mels, 1024, args.device)
    calls = {
        str(frames): make(model, torch.randn(args.batch, 1, args.mels, frames, device=args.device), args.precision)
        for frames in lengths
    }
    times = interleave(calls, rounds=args.rounds, device=args.device)
    macs = {
        frames: measure(args.model, num_classes=CLASSES, mels=args.mels, frames=frames).total_macs for frames in lengths
    }
    rows = table(macs, times, args.base)
    show(rows)
    worst = max(row["excess"] for row in rows)
    print(f"at most {worst:.2f} times what the multiply-accumulates say (goal: {GOAL})")
    name = f"length_{args.model}_{args.device.split(':')[0]}_{args.precision}_{args.part}"
    publish(args, name, "length", machine, relative_error=error, rows=rows, worst=worst)


if __name__ == "__main__":
    main()
