"""docs/inference.md: its commands have options that exist, and its Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mast
from avssl.cli import parse
from avssl.config import FinetuneConfig
from avssl.config.inference import EmbedConfig, ExportConfig
from mast.export import describe
from mast.exported import Exported

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
LINES = re.findall(r"^(?:python|arecord) .*tools/.*", PAGE, re.MULTILINE)
COMMANDS = [line.split("| ")[-1] for line in LINES]
CONFIGS = {"export": ExportConfig, "embed": EmbedConfig, "finetune": FinetuneConfig}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_options_that_exist(command: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    python, tool, *arguments = shlex.split(command)
    assert python == "python" and Path(tool).is_file()
    if Path(tool).stem in CONFIGS:
        parse(CONFIGS[Path(tool).stem], arguments)  # exits with an error at an unknown option
        return
    shown = subprocess.run([sys.executable, tool, "--help"], capture_output=True, text=True, check=True).stdout
    for flag in filter(lambda argument: argument.startswith("--"), arguments):
        assert re.search(rf"{flag}\b", shown), flag


def test_the_page_shows_every_tool_and_extra() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} >= {
        f"tools/{n}.py" for n in ("export", "embed", "predict")
    }
    extra = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^export = \[", extra, re.MULTILINE) and "pip install 'avssl[export]'" in PAGE


def test_the_python_runs(monkeypatch, capsys) -> None:
    model = mast.create_model("mast_pico", num_classes=2, embed_dim=16, depths=[1, 1, 1, 1], mels=32).eval()
    frontend = mast.LogMel(num_mels=32)
    described = describe(model, frontend, {"kind": ["a", "b"]})
    opened = Exported(lambda x: [model(frontend(x)), model.forward_features(frontend(x)).mean(1)], described)
    monkeypatch.setattr(mast, "open_exported", lambda path: {"model.onnx": opened}[path])
    first, second = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    scope: dict = {}
    exec(compile(first, "docs/inference.md", "exec"), scope)
    exec(compile(second, "docs/inference.md", "exec"), scope)
    assert scope["logits"].shape == (2, 2)
    assert capsys.readouterr().out.startswith("waveform ")
    assert sum(frames.shape[-1] for frames in scope["frames"]) == mast.LogMel().num_frames(48000)
