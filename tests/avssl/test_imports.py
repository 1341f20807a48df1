"""What an import of avssl brings, and what it does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import avssl

# Every module, with packages that none of them needs absent, as where only the dependencies are installed.
EVERYTHING = """
import importlib, pkgutil, sys
import avssl
assert "mast" not in sys.modules
import torchvision.ops  # which mast repairs before it is imported
assert "torchvision" in sys.modules["mast"].repaired
for name in ("torchaudio", "timm", "transformers", "umap", "onnx", "onnxruntime", "onnxscript", "webdataset"):
    sys.modules[name] = None
import mast
for package in (mast, avssl):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__") and not module.name.startswith("mast.fast.cuda"):
            importlib.import_module(module.name)
assert "lightning_fabric" in sys.modules and "torchmetrics" not in sys.modules
for name in [name for name, module in sys.modules.items() if module is None]:
    del sys.modules[name]
import torchmetrics  # whoever wants it gets it
assert torchmetrics.MeanMetric
"""
LIGHT = """
import sys, avssl, avssl.config, avssl.cli
heavy = {"torch", "mast", "numpy", "av", "pyarrow", "lightning_fabric"} & set(sys.modules)
assert not heavy, heavy
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_but_the_dependencies_is_needed_and_torchmetrics_is_not_waited_for() -> None:
    run(EVERYTHING)


def test_avssl_and_its_settings_are_light() -> None:
    run(LIGHT)


@pytest.mark.parametrize("package", ["data", "demo", "augment"])
def test_what_brings_data_imports_nothing_of_what_stands_above_it(package: str) -> None:
    names = ("evaluation", "commands", "tasks", "objectives", "engine", "tracking", "api")
    above = re.compile(rf"^\s*(?:from|import) avssl\.({'|'.join(names)})\b", re.MULTILINE)
    files = sorted((Path(avssl.__file__).parent / package).rglob("*.py"))
    assert files and not [path.name for path in files if above.search(path.read_text(encoding="utf-8"))]
