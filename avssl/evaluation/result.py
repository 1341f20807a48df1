"""Results that can be reproduced: every JSON says which code, which libraries and which machine made it."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.files import atomic_path, seal, unseal
from avssl.urls import hidden

PACKAGES = ("avssl", "torch", "torchvision", "torchaudio", "av", "decord", "lightly", "numpy", "scikit-learn", "soxr")


def code_revision() -> str | None:
    """``git describe`` of the checkout that this package runs from, ``-dirty`` when edited; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--long", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """Code revision, library versions, Python, platform, devices and date (UTC): JSON-able, without host names."""
    return {
        "revision": code_revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": {package: version for package in PACKAGES if (version := _version(package)) is not None},
    }


def jsonable(value: Any) -> Any:
    """Plain JSON values: NaN and infinity become null; arrays, tensors, dataclasses, paths and sets are unfolded.

    Raises:
        TypeError: a value of another type, named.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike | datetime.date):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [jsonable(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    raise TypeError(f"cannot write {type(value).__name__} to JSON")


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Writes strict JSON (no NaN literal) with its checksum, without the credentials of URLs in messages of failures;
    the file appears whole or not at all."""
    values = seal(hidden(json.loads(json.dumps(jsonable(result), allow_nan=False))))
    text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`write_result` wrote.

    Raises:
        DamagedError: the file is not as it was written; a ValueError.
        OSError: it cannot be read.
    """
    return unseal(Path(path).read_bytes(), path, "make it again")
