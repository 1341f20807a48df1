"""The kernels where there is no GPU: in Triton's interpreter, and compiled for GPUs that are elsewhere.

Both in processes of their own: the interpreter has to be chosen before Triton is imported. They need Triton beside
torch for CPUs: ``pip install --no-deps triton==3.8.0``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Loads of spilled registers: none, but for a few in the backward pass of attention, more or less by Triton's version.
SPILLS = {90: {"attention queries 64": 40, "attention keys 64": 16, "attention keys 32": 64}, 80: {}, 120: {}}
FEW = {90: 0, 80: 16, 120: 16}
SHARED = {90: 112 * 1024, 80: 80 * 1024, 120: 99 * 1024}


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install --no-deps triton==3.8.0")


def run(*command: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_interpreted_kernels_compute_the_formulas() -> None:
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted.py"), TRITON_INTERPRET="1")
    assert " passed" in told and "skipped" not in told, told


@pytest.mark.parametrize("architecture", SPILLS)
def test_kernels_compile_within_bounds(architecture: int) -> None:
    rows = [json.loads(line) for line in run(str(HERE / "offline.py"), str(architecture)).splitlines()]
    assert len(rows) > 6
    for row in rows:
        name = row["name"].partition(";")[0]
        assert row["spill_loads"] <= SPILLS[architecture].get(name, FEW[architecture]), row
        assert row["shared"] <= SHARED[architecture], row
