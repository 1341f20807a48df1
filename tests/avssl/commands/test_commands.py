"""The command ``avssl``: its help, its errors, what it does not import, and the twins in tools/."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from avssl import commands
from avssl.commands import COMMANDS, SETTINGS, main

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "torchvision", "lightning_fabric", "lightly", "wandb", "matplotlib", "sklearn", "scipy")
LINES = [
    [],
    ["pretain"],
    *[[name, "--help"] for name in COMMANDS],
    ["finetune", "--optim.lrr", "1"],
    ["pretrain", "--bad"],
    ["finetune", "--data", "esc5"],
    ["embed", "--data", "esc5", "--checkpoint", "x", "--output", "y.npz"],
]
# Runs commands, each in a process forked from one that has the package alone, and writes what each says and which heavy
# packages it imported; --help and errors end in SystemExit.
IMPORTED = f"""
import contextlib, io, json, os, sys
from avssl.commands import main

def answer(argv):
    told = {{name: io.StringIO() for name in ("stdout", "stderr")}}
    with contextlib.redirect_stdout(told["stdout"]), contextlib.redirect_stderr(told["stderr"]):
        with contextlib.suppress(SystemExit):
            main(argv)
    imported = [name for name in {HEAVY} if name in sys.modules]
    return {{name: text.getvalue() for name, text in told.items()}} | {{"imported": imported}}

for argv in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.write(1, (json.dumps(answer(argv)) + chr(10)).encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def answers() -> list[dict]:
    """To LINES."""
    command = [sys.executable, "-c", IMPORTED, json.dumps(LINES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(LINES), done.stderr
    return found


def module_of(name: str) -> str:
    return name.replace("-", "_")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_it(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: avssl {name} [")


def test_help_lists_every_command_with_a_line(capsys) -> None:
    assert main(["--help"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(COMMANDS)
    assert all(20 < len(what) <= 120 for _, what in lines)


def test_no_command_is_missing_from_the_list() -> None:
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {module_of(name) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_tool_is_the_twin_of_its_command(name: str, monkeypatch) -> None:
    given: list[list[str]] = []
    runs = "run_with_settings" if name in SETTINGS else "run_with_arguments"
    monkeypatch.setattr(commands, runs, lambda which, argv: given.append(argv) or 7 * (which == name))
    monkeypatch.setattr(sys, "argv", ["tool.py", "--some", "option"])
    source = ROOT / "tools" / f"{module_of(name)}.py"
    with pytest.raises(SystemExit) as ended:
        exec(compile(source.read_text(), str(source), "exec"), {"__name__": "__main__"})
    assert ended.value.code == 7 and given == [["--some", "option"]]


@pytest.mark.parametrize(("typed", "near"), [("pretain", "pretrain"), ("extract_audio", "extract-audio")])
def test_a_misspelt_command_names_the_nearest(typed: str, near: str, capsys) -> None:
    assert main([typed]) == 2
    assert capsys.readouterr().err == f"error: no command {typed!r}; did you mean {near!r}? See avssl --help\n"


@pytest.mark.parametrize("number", range(len(LINES)), ids=[" ".join(line) for line in LINES])
def test_help_and_typos_are_answered_without_torch(number: int, answers: list[dict]) -> None:
    argv, answer = LINES[number], answers[number]
    assert answer["imported"] == [], answer
    assert answer["stdout"] if "--help" in argv or not argv else "error: " in answer["stderr"]


def test_expected_errors_are_one_line_and_status_1(monkeypatch, capsys) -> None:
    def run(argv: list[str]) -> int:
        raise ValueError("data.heads: no\n such head")

    monkeypatch.setattr(import_module("avssl.commands.finetune"), "run", run)
    assert main(["finetune"]) == 1
    assert capsys.readouterr().err == "error: data.heads: no such head\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["prepare", "--dta", "x"], "no option --dta; did you mean --data? See avssl prepare --help"),
        (["prepare"], "the following arguments are required: --data; see avssl prepare --help"),
        (["compare", "x", "--format=pdf"], "argument --format: invalid choice: 'pdf' (choose from"),
        (["predict", "x.wav", "--chekpoint", "y"], "did you mean --checkpoint? See avssl predict --help"),
        (["extract-audio", "--data", "x", "--output", "y", "--workers", "two"], "--workers: invalid int value: 'two'"),
        (["average", "a.ckpt", "--out", "b"], "no option --out; did you mean --output? See avssl average --help"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(argv: list[str], told: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and told in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_optional_package_is_told_with_its_command_before_any_work(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    argv = ["export", "--checkpoint", str(tmp_path / "not looked at"), "--output", str(tmp_path / "model.onnx")]
    assert main(argv) == 1
    assert capsys.readouterr().err == "error: onnxscript is not installed: pip install 'avssl[export]'\n"
    assert main([*argv[:-1], str(tmp_path / "model.pt2")]) == 1  # needs none: goes on to the checkpoint
    assert "not looked at" in capsys.readouterr().err


def test_a_broken_import_keeps_its_traceback(monkeypatch, capsys) -> None:
    def run(argv: list[str]) -> int:
        import avssl.nothing  # noqa: F401

        return 0

    monkeypatch.setattr(import_module("avssl.commands.finetune"), "run", run)
    assert main(["finetune"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and told.endswith("ModuleNotFoundError: No module named 'avssl.nothing'\n")


def test_an_error_of_the_system_names_the_file(capsys) -> None:
    assert main(["average", "nowhere.ckpt", "--output", "x.ckpt"]) == 1
    assert capsys.readouterr().err == "error: nowhere.ckpt: no such file or directory\n"


def test_defects_keep_their_traceback(monkeypatch, capsys) -> None:
    def run(argv: list[str]) -> int:
        raise AttributeError("a defect")

    monkeypatch.setattr(import_module("avssl.commands.finetune"), "run", run)
    assert main(["finetune"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "in run\n" in told and told.endswith("AttributeError: a defect\n")


def test_python_m_avssl_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "avssl", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip()
