"""What an import of avssl brings, and what it does not."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import avssl
import mast

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


# From the bottom up: a module imports of its own layer and of those below it, wherever in it the import stands.
LAYERS = (
    ("bounds", "errors", "files", "limits", "locks", "plugins", "progress", "urls"),
    ("settings",),  # of data, models, augmentation and training: read without torch
    ("checkpoint", "data", "demo"),
    ("models",),
    ("augment",),
    ("objectives",),
    ("config", "tracking"),
    ("saved_runs",),
    ("loading", "prediction"),
    ("evaluation",),
    ("training",),
    ("api", "arguments", "cli", "commands"),
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}


def layer(module: str) -> int:
    """The height of a module of avssl; the package itself brings the API and stands beside it."""
    parts = module.split(".")[1:]
    if not parts or parts == ["__main__"]:
        return LAYER["api"]
    return LAYER["settings" if parts[-1] == "settings" else parts[0]]


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, of ``from package import module`` the module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)


def modules(package: ModuleType) -> dict[str, Path]:
    root = Path(str(package.__file__)).parents[1]
    files = (path.relative_to(root) for path in (root / package.__name__).rglob("*.py"))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): root / path for path in files}


def test_avssl_is_imported_downhill() -> None:
    known = modules(avssl)
    assert {name.split(".")[1] for name in known if "." in name} - {"__main__"} == LAYER.keys() - {"settings"}
    uphill = []
    for name, file in known.items():
        for found in imported(file):
            # A name of a package is of that package, or one of its modules.
            other = found if found in known else found.rpartition(".")[0]
            if other in known and layer(other) > layer(name):
                uphill.append(f"{name} imports {found}")
    assert not uphill


def test_mast_stands_alone_and_its_model_knows_no_fast_path() -> None:
    known = modules(mast)
    assert not [name for name, file in known.items() if any(found.split(".")[0] == "avssl" for found in imported(file))]
    plain = {found for found in imported(known["mast.model"]) if found.startswith("mast")}
    assert plain and not [found for found in plain if found.startswith("mast.fast")]
