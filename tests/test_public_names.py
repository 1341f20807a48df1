"""Tests use what is public: a private name of the packages may change without a test being wrong."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Parts of kernels, and of the graphs that launch them, which have no other handle.
KERNELS = ("tests/mast/fast/cuda/", "tests/avssl/training/test_graphed.py")
PATCHES = ("setattr", "getattr", "delattr")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a module defines: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a module imports, reaches as attributes, or patches by their text, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in PATCHES:
            texts = (each.value for each in node.args if isinstance(each, ast.Constant))
            yield from ((node.lineno, text.rpartition(".")[2]) for text in texts if isinstance(text, str))


def test_tests_reach_no_private_name_of_the_packages() -> None:
    files = [file for package in ("avssl", "mast", "benchmarks") for file in (ROOT / package).rglob("*.py")]
    private = {name for file in files for name in defined(ast.parse(file.read_text())) if is_private(name)}
    assert "_fit" in private
    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        place, tree = file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())
        reached = private - set(defined(tree))  # its own classes have private parts, too
        found += [f"{place}:{line}: {name}" for line, name in used(tree) if name in reached]
    assert not [line for line in found if not line.startswith(KERNELS)]
