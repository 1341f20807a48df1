"""Which share of the cores' measured peak of matrix products the models reach.

    python benchmarks/peak.py --output benchmarks/results

The peak is the best of square float32 (and bfloat16) products of several sizes in the same run, in turn with the
models' inference, each at its shortest call; the work of a model is its multiply-accumulates with attention
(``mast.complexity``), two operations each. Goal: at least 70 % in float32.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import describe_machine, interleave, publish
from mast_vs_ast import CLASSES, build, check, inference
from torch import Tensor

from mast.complexity import measure

GOAL = 0.7
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def product(size: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def measured(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Rates in GFLOP/s of the best product and of both models, and the models' shares of the former."""
    work = {f"mm_{size}": 2 * size**3 for size in args.sizes}
    calls: dict[str, Callable[[], Any]] = {
        f"mm_{size}": product(size, DTYPES[precision], args.device) for size in args.sizes
    }
    x = torch.randn(args.batch, 1, args.mels, args.frames, device=args.device)
    for name, counted in ((args.model, args.model), ("hf_ast", "ast_base")):
        calls[name] = inference(build(name, args.mels, args.frames, args.device), x, precision)
        macs = measure(counted, num_classes=CLASSES, mels=args.mels, frames=args.frames).total_macs
        work[name] = 2 * args.batch * macs
    times = interleave(calls, rounds=args.rounds, device=args.device)
    rates = {name: work[name] / min(seconds) / 1e9 for name, seconds in times.items()}
    peak = max(rate for name, rate in rates.items() if name.startswith("mm_"))
    return {
        "peak_gflops": round(peak, 1),
        "gflops": {name: round(rate, 1) for name, rate in rates.items()},
        "ours": round(rates[args.model] / peak, 3),
        "ast": round(rates["hf_ast"] / peak, 3),
        "rounds": args.rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mast_base", help="one of mast.list_models()")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--mels", type=int, default=128)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 3072], help="sides of the products")
    parser.add_argument("--precisions", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()

    machine = describe_machine(args.device)
    error = check(args.model, args.mels, args.frames, args.device)
    print(f"float32 against the written-out formula in float64: relative difference {error:.1e}")
    if not error <= 1e-4:
        raise SystemExit("the fast model is wrong; not timing it")
    shares = {}
    for precision in args.precisions:
        shares[precision] = row = measured(args, precision)
        print(
            f"{precision}: peak {row['peak_gflops']:.0f} GFLOP/s; {args.model} reaches {100 * row['ours']:.0f} % of "
            f"it, Hugging Face AST {100 * row['ast']:.0f} % (goal for float32: {100 * GOAL:.0f} %)"
        )
    name = f"peak_{args.model}_{args.device.split(':')[0]}"
    publish(args, name, "peak", machine, relative_error=error, shares=shares)


if __name__ == "__main__":
    main()
