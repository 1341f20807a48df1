"""Compiles the kernels for GPUs that are not there: registers, spills and shared memory of each, as JSON lines.

    python tests/mast/fast/cuda/offline.py 90 80

Needs Triton, whose package has NVIDIA's assembler and disassembler; torch may be for CPUs.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

attention = importlib.import_module("mast.fast.cuda.attention")
pooling = importlib.import_module("mast.fast.cuda.pooling")
pooling3d = importlib.import_module("mast.fast.cuda.pooling3d")
norms = importlib.import_module("mast.fast.cuda.norms")
positions = importlib.import_module("mast.fast.cuda.positions")
sums = importlib.import_module("mast.fast.cuda.sums")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = ("lse_ptr", "delta_ptr", "p_ptr", "mean_ptr", "rstd_ptr", "sums_ptr", "gain_ptr", "shift_ptr")
FLOATS += ("a_ptr", "b_ptr", "c_ptr", "shares_ptr")
INTEGERS = ("index_ptr", "starts_ptr", "order_ptr")
SCALARS = ("scale", "inverse", "eps")
ALIGNED = ("queries", "columns", "width", "rows", "q_rows", "q_columns", "k_rows", "k_columns")


def compiled(kernel: Any, constants: Mapping[str, int], architecture: int) -> dict[str, int]:
    """Registers of a thread of ``kernel``, loads of spilled ones and bytes of shared memory on this architecture."""
    options = {name: value for name, value in constants.items() if name.startswith("num_")}
    values = {name: value for name, value in constants.items() if not name.startswith("num_")}
    names = kernel.arg_names

    def kind(name: str) -> str:
        if name in values:
            return "constexpr"
        if name in SCALARS:
            return "fp32"
        if name in INTEGERS:
            return "*i32"
        return ("*fp32" if name in FLOATS else "*bf16") if name.endswith("_ptr") else "i32"

    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name.endswith("_ptr") or (name in ALIGNED and name not in values)
    }
    source = ASTSource(
        fn=kernel,
        signature={name: kind(name) for name in names},
        constexprs={(names.index(name),): value for name, value in values.items()},
        attrs=aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True).stdout
    registers = re.search(r"REG:(\d+)", usage)
    assert registers and code, "NVIDIA's tools are not in Triton's package"
    return {
        "registers": int(registers[1]),
        "spill_loads": len(re.findall(r"\bLDL\b", code)),
        "shared": made.metadata.shared,
    }


def kernels(architecture: int) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """Name, kernel and constants, as MAST-B's stages 3 and 4 have them."""
    tiles = attention.TILES if 90 <= architecture < 120 else attention.SMALL_TILES
    for columns in (64, 32):
        for name, tile in tiles.items():
            kernel = getattr(attention, "_forward" if name == "forward" else f"_backward_{name}")
            cut = tile._replace(keys=min(tile.keys, columns))
            rows = {"R": 8} if name == "queries" else {}
            residual = {} if name == "keys" else {"RESIDUAL": 1}
            yield f"attention {name} {columns}", kernel, attention._sizes(96, cut) | rows | residual
    for q_stride, kv_stride in (((1, 1), (1, 1)), ((1, 1), (2, 4)), ((2, 2), (1, 2))):
        strides = dict(zip(("QF", "QT", "KF", "KT"), (*q_stride, *kv_stride), strict=True))
        sizes = strides | {"D": 96, "DP": 128}
        march, (rows, warps) = sizes | {"SEGMENT": pooling.SEGMENT, "num_warps": 1}, pooling.BACKWARD_INPUT
        yield f"pooling forward {q_stride} {kv_stride}", pooling._forward, march
        yield f"pooling backward {q_stride} {kv_stride}", pooling._backward, march
        yield (
            f"pooling input {q_stride} {kv_stride}",
            pooling._backward_input,
            sizes | {"ROWS": rows, "num_warps": warps},
        )

    for dim in (96, 384, 768):
        sizes = norms._sizes(dim)
        yield f"norm {dim}", norms._norm, sizes | {"ADD": 1, "SHARES": 1, "NEXT": 1}
        flags = dict.fromkeys(("PAST", "BIASES", "SHARES", "PAST_SHARES"), 1)
        yield f"norm backward {dim}", norms._norm_backward, sizes | flags
    tile = {"ROWS": norms.GELU_ROWS, "COLUMNS": norms.GELU_COLUMNS, "num_warps": norms.GELU_WARPS}
    yield "gelu backward", norms._gelu_backward, tile
    for name in ("_gather", "_scatter"):
        sizes = {"D": 96, "DP": 128, "ROWS": positions.ROWS, "num_warps": 4}
        yield f"positions{name}", getattr(positions, name), sizes
    yield "fold", sums._fold, {"HALF": 1, "ROWS": sums.ROWS, "COLUMNS": sums.COLUMNS, "num_warps": 4}
    sizes = {"D": 96, "DP": 128, "num_warps": 1}  # strides are told at run time
    for name in ("_forward", "_backward", "_backward_weights", "_backward_input"):
        yield f"pooling3d{name}", getattr(pooling3d, name), sizes


def with_ones(architecture: int) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """`kernels`, and each again with sizes of 1, which Triton makes constants: a sample of one head, and all sizes."""
    known = set()
    for name, kernel, constants in kernels(architecture):
        yield name, kernel, constants
        if kernel in known:
            continue
        known.add(kernel)
        sizes = [
            each for each in kernel.arg_names if not (each in constants or each in SCALARS or each.endswith("_ptr"))
        ]
        single = [each for each in sizes if each in ("samples", "batch", "heads")]
        for ones in filter(None, (single, sizes)):
            yield f"{name}; 1: {' '.join(ones)}", kernel, constants | dict.fromkeys(ones, 1)


def main() -> None:
    for architecture in map(int, sys.argv[1:] or ("90", "80")):
        for name, kernel, constants in with_ones(architecture):
            found = {"name": name, "architecture": architecture, **compiled(kernel, constants, architecture)}
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
