"""`import mast` makes torchvision and torchaudio importable, and leaves a sound installation alone."""

import subprocess
import sys

IMPORTS = """
import mast
import torchvision.transforms.v2, torchvision.models.video, torchaudio.compliance.kaldi, torchaudio.functional
import lightly.loss, timm, torchmetrics, lightning_fabric
from transformers import ASTForAudioClassification
import torch
assert torchaudio.compliance.kaldi.fbank(torch.randn(1, 1600)).shape == (8, 23)
assert torchvision.models.video.r3d_18().eval()(torch.zeros(1, 3, 4, 16, 16)).shape == (1, 400)
assert torchvision.transforms.v2.Resize(4)(torch.zeros(3, 8, 8)).shape == (3, 4, 4)
"""

SOUND = """
import sys, torch
loaded = []
torch.ops.load_library = loaded.append  # as where the binaries load
import mast
assert mast.repaired == {"torchvision": False, "torchaudio": False}, mast.repaired
assert "torchaudio._extension.utils" not in sys.modules
assert len(loaded) == 2, loaded
"""

CHEAP = """
import sys, mast
assert "torchvision" not in sys.modules and "torchaudio" not in sys.modules
assert not any(name.split(".")[0] == "avssl" for name in sys.modules), "mast must not import avssl"
"""


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_packages_with_binaries_import_after_mast() -> None:
    run(IMPORTS)


def test_nothing_is_changed_where_the_binaries_load() -> None:
    run(SOUND)


def test_mast_imports_neither_torchvision_nor_torchaudio_nor_avssl() -> None:
    run(CHEAP)
