"""What all benchmarks share: a description of the machine, interleaved timing, peak memory, JSON results."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# As avssl sets it: large tensors on huge pages, for both sides of a comparison. torch reads it at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Versions, processor, threads and load: what a reader needs to judge a number."""
    info: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "huge_pages": os.environ["THP_MEM_ALLOC_ENABLE"] == "1",
        "load_average": round(os.getloadavg()[0], 2),
        "revision": _revision(),
    }
    if device.startswith("cuda"):
        info["gpu"] = torch.cuda.get_device_name(device)
        info["cuda"] = torch.version.cuda
    return info


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    folder = Path(__file__).parent
    result = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """``--output`` and ``--label`` of :func:`publish`, and ``--keep-memory``, which the caller follows."""
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    parser.add_argument("--label", default="", help="ends the result's name, to keep those of several machines")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory, as avssl's runs on a CPU do")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for on the command line: of paths the names alone, and not where the result goes."""
    return {
        key: value.name if isinstance(value, Path) else value for key, value in vars(args).items() if key != "output"
    }


def synchronize(device: str) -> None:
    """Wait for the device, so that a clock read afterwards counts its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time candidates in turn, A B A B, so that a busy minute meets all of them.

    Args:
        candidates: name -> function without arguments.
        rounds: timed calls of each.
        warmup: calls of each before.
        device: waited for around each call.
        clock: what is read; ``time.process_time`` counts the processor's time, not that of other work on it.

    Returns:
        name -> seconds of each call.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(warmup + rounds):
        for name, call in candidates.items():
            synchronize(device)
            start = clock()
            call()
            synchronize(device)
            if index >= warmup:
                times[name].append(clock() - start)
    return times


def compare(times: Mapping[str, list[float]], ours: str, peer: str) -> dict[str, Any]:
    """Medians, and how many times faster ``ours`` is: the median over rounds of the paired ratio, with its range."""
    ratios = sorted(b / a for a, b in zip(times[ours], times[peer], strict=True))
    return {
        "ours_s": round(statistics.median(times[ours]), 5),
        "peer_s": round(statistics.median(times[peer]), 5),
        "speedup": round(statistics.median(ratios), 3),
        "speedup_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "rounds": len(ratios),
    }


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the process that started this one, too
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2


def write_result(folder: str | Path, name: str, result: Mapping[str, Any]) -> Path:
    """Write ``result`` as ``folder/name.json``, whole or not at all."""
    from mast.files import atomic_path  # here, as what measures memory starts with as little as it can

    path = Path(folder) / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    return path


def publish(
    args: argparse.Namespace,
    name: str,
    benchmark: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    **measured: Any,
) -> None:
    """Write what was ``measured``, and all that a reader needs to judge it, as ``name.json``; say where.

    Args:
        args: of the command line; without its ``output``, a folder, nothing is written. Its ``label`` ends the name.
        settings: in place of what :func:`settings_of` finds in ``args``.
    """
    if args.output:
        settings = settings_of(args) if settings is None else settings
        name += f"_{args.label}" if getattr(args, "label", "") else ""
        result = {"benchmark": benchmark, "settings": settings, "machine": machine, **measured}
        print(f"written: {write_result(args.output, name, result)}")
