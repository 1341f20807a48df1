"""docs/inference.md: its exports have options that exist, and its Python runs."""

import re
import shlex
from pathlib import Path

import pytest

import mast
from avssl.cli import parse
from avssl.config import ExportConfig
from mast.export import describe
from mast.exported import Exported

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:.*\| )?python (tools/.*)", PAGE, re.MULTILINE)
EXPORTS = [command for command in COMMANDS if command.startswith("tools/export.py ")]


@pytest.mark.parametrize("command", EXPORTS)  # the others are run
def test_every_export_has_options_that_exist(command: str) -> None:
    parse(ExportConfig, shlex.split(command)[1:])  # exits with an error at an unknown option


def test_the_page_shows_every_tool_and_extra() -> None:
    assert {command.split()[0] for command in COMMANDS} >= {f"tools/{n}.py" for n in ("export", "embed", "predict")}
    extra = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^export = \[", extra, re.MULTILINE) and "pip install 'avssl[export]'" in PAGE


def test_the_python_runs(tmp_path, monkeypatch, capsys) -> None:
    model = mast.create_model("mast_pico", num_classes=2, embed_dim=16, depths=[1, 1, 1, 1], mels=32).eval()
    frontend = mast.LogMel(num_mels=32)
    described = describe(model, frontend, {"kind": ["a", "b"]})
    opened = Exported(lambda given: [model(frontend(*given)), model.features(frontend(*given))], described)
    monkeypatch.setattr(mast, "open_exported", lambda path: {"model.onnx": opened}[path])
    mast.save_pretrained(model, tmp_path / "RUN", frontend=frontend, labels={"kind": ["a", "b"]})
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(code, "docs/inference.md", "exec"), scope)
    assert scope["features"].shape == (2, model.num_features) and scope["scores"]["kind"].sum() == pytest.approx(2)
    assert scope["logits"].shape == (2, 2)
    assert capsys.readouterr().out.startswith("waveform ")
    assert sum(frames.shape[-1] for frames in scope["frames"]) == mast.LogMel().num_frames(48000)
