"""Cells of a benchmark: runs of the tools that are started side by side, kept once finished, and written at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage
from typing import Any

from tqdm import tqdm

from avssl.evaluation.result import read_result
from mast.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
# One thread a run, and none that decodes: what is measured side by side must not depend on its neighbours' number.
ALONE = ["--runtime.threads", "1", "--data.num_workers", "0", "--runtime.accelerator", "cpu"]
UNTRACKED = ["--wandb.mode", "disabled"]


def tool(name: str, arguments: Sequence[str], log: Path) -> float:
    """Runs a tool to its end; its peak memory in MB."""
    return usage(name, arguments, log).ru_maxrss / 1024


def usage(name: str, arguments: Sequence[str], log: Path) -> struct_rusage:
    """Runs a tool to its end; what it used of the machine.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed, see {log}: {log.read_text()[-500:]}")
    return used


@dataclass(frozen=True)
class Cell:
    """One run: its name, for example esc10:mast:fold1, the options of its tool, what it is, and the tool."""

    name: str
    arguments: tuple[str, ...]
    about: dict[str, Any]
    tool: str = "finetune"

    def folder(self, runs: Path) -> Path:
        """Folder of the run."""
        return runs / self.name.replace(":", "-")


def published(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a result holds it: without the options, which name folders of this machine."""
    return {key: value for key, value in row.items() if key != "arguments"}


def measured(cell: Cell, runs: Path) -> dict[str, Any] | None:
    """The row of a finished cell; None of another.

    Raises:
        RuntimeError: it was run with other options.
    """
    done = cell.folder(runs) / "measured.json"
    if not done.is_file():
        return None
    row: dict[str, Any] = json.loads(done.read_text())
    if row["arguments"] != list(cell.arguments):
        raise RuntimeError(f"{done} is of other options, {row['arguments']}: choose another --runs")
    return row


def measure(cell: Cell, runs: Path) -> dict[str, Any]:
    """Runs ``cell``, or reads the row of an earlier call."""
    if (row := measured(cell, runs)) is not None:
        return row
    folder = cell.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "run"
    options = [*cell.arguments, *ALONE, *UNTRACKED, "--output", str(output)]
    used = usage(cell.tool, options, folder / f"{cell.tool}.log")
    result = read_result(output / "result.json")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    row = {
        "cell": cell.name,
        **cell.about,
        "metrics": result["metrics"],
        "clustering": result.get("clustering", {}),
        "validation": next((line for line in reversed(lines) if any(key.startswith("val/") for key in line)), None),
        "start": result["start"],
        "weights": result.get("weights", {}),
        "peak_memory_mb": used.ru_maxrss / 1024,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "arguments": list(cell.arguments),
    }
    with atomic_path(folder / "measured.json") as temporary:
        temporary.write_text(json.dumps(row))
    return row


def measure_all(
    cells: Sequence[Cell], runs: Path, parallel: int, keep: Callable[[dict[str, Any]], None], what: str
) -> int:
    """Runs the cells, ``parallel`` at a time; ``keep`` gets every row as it comes, one at a time.

    Returns:
        The number of cells that failed; each is reported, and does not stop the others.
    """
    failed = 0
    with ThreadPoolExecutor(parallel) as pool, tqdm(total=len(cells), desc=what, unit="cell") as bar:
        futures = {pool.submit(measure, cell, runs): cell for cell in cells}
        for future in as_completed(futures):
            cell = futures[future]
            try:
                row = future.result()
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                failed += 1
                bar.write(f"{cell.name}: {error}")
            else:
                keep(row)
                found = row["metrics"].items()
                told = [f"{key} {value:.1%}" for key, value in found if key.endswith(("/top1", "to_video/R@1"))]
                bar.write(f"{cell.name}: {told[0] if told else 'done'}")
            bar.update()
    return failed
