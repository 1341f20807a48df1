"""The way from the command line to the loss: through the files that the documents name, in one direction, each once."""

import re
import runpy
import sys
import traceback
from itertools import groupby
from pathlib import Path

import pytest
from small_runs import small_pretraining

from avssl.config import to_yaml
from avssl.models import AudioVisualPair

ROOT = Path(__file__).parents[3]


class AtTheEncoder(BaseException):
    """The walk ends here."""


def files_of_the_stack() -> list[str]:
    """Our files from the outermost call to the innermost one, each as often as it is entered from another."""
    frames = [Path(frame.filename) for frame in traceback.extract_stack()]
    known = [file for file in frames if file.is_relative_to(ROOT) and "site-packages" not in file.parts]
    ours = [str(file.relative_to(ROOT)) for file in known]
    return [file for file, _ in groupby(file for file in ours if not file.startswith("tests/"))]


def test_a_step_leads_to_the_loss_as_documented_and_goes_back_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "docs/concepts.md").read_text(encoding="utf-8").split("## A training step\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\d\. \[[^]]+\]\(\.\./([^)]+)\)", section, re.MULTILINE)
    found: list[str] = []

    def at_the_encoder(self: AudioVisualPair, spectrogram: object):
        found.extend(files_of_the_stack())
        raise AtTheEncoder

    monkeypatch.setattr(AudioVisualPair, "encode_audio", at_the_encoder)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(to_yaml(small_pretraining(tmp_path / "run", 1, every=0)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", str(recipe)])
    with pytest.raises(AtTheEncoder):
        runpy.run_path(str(ROOT / "tools/pretrain.py"), run_name="__main__")
    assert len(set(documented)) == len(documented) == 7
    # An objective asks for what it compares, and the step that answers is read already.
    assert found == [*documented, "avssl/training/pretraining.py"]
