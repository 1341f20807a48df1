"""Counts stand where the published figures stand, and agree with the formulas of attention."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mast
from mast.__main__ import main
from mast.complexity import measure, measure_module


@pytest.mark.parametrize(
    ("name", "classes", "millions", "linear", "total"),
    [
        ("mast_base", 527, 51.39, 20.35, 26.30),
        ("mast_base", 309, 51.22, None, None),
        ("mast_base", 32, 51.01, None, None),
        ("mast_small", 527, 34.69, None, 18.17),
        ("mast_tiny", 527, 23.94, None, 11.41),
        ("mast_pico", 527, 6.17, None, 3.62),
        ("mast_micro", 527, 1.82, 0.78, 1.66),
        ("mast_nano", 527, 1.36, 0.52, 1.19),
        ("ast_base", 527, 86.59, 103.35, 130.51),
    ],
)
def test_table(name: str, classes: int, millions: float, linear: float | None, total: float | None) -> None:
    row = measure(name, num_classes=classes)
    assert row.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    if linear is not None:
        assert row.linear_macs / 1e9 == pytest.approx(linear, abs=0.006)
    if total is not None:
        assert row.total_macs / 1e9 == pytest.approx(total, abs=0.006)


@pytest.mark.parametrize(("frames", "total"), [(800, 19.54), (512, 11.67), (400, 8.91), (200, 4.40)])
def test_shorter_inputs_cost_less(frames: int, total: float) -> None:
    assert measure("mast_base", frames=frames).total_macs / 1e9 == pytest.approx(total, rel=0.002)


def test_stages_shrink_as_designed() -> None:
    assert measure("mast_base").grids == ((16, 256), (8, 128), (8, 64), (4, 32))


@pytest.mark.parametrize("name", ["mast_pico", "ast_base"])
def test_agrees_with_the_formula(name: str) -> None:
    small = (
        {"embed_dim": 8, "depths": (1, 2, 1, 1)} if name == "mast_pico" else {"embed_dim": 24, "depth": 2, "heads": 2}
    )
    row = measure_module(mast.create_model(name, num_classes=3, **small), frames=208)
    tokens = [f * t for f, t in row.grids]
    if name == "ast_base":
        assert row.attention_macs == 2 * 2 * tokens[0] ** 2 * 24
        return
    expected = 0
    grid = (16, 52)
    steps = [((1, 1), (2, 4)), ((2, 2), (1, 2)), ((1, 1), (1, 2)), ((1, 2), (1, 1)), ((2, 2), (1, 1))]
    for width, (q_step, k_step) in zip((8, 16, 16, 32, 64), steps, strict=True):
        q, k = ([-(-size // s) for size, s in zip(grid, step, strict=True)] for step in (q_step, k_step))
        expected += q[0] * q[1] * (2 * k[0] * k[1] + k[0] + k[1]) * width  # q k^T, weights v, two tables of positions
        grid = (q[0], q[1])
    assert row.attention_macs == expected


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["mast_base", "--frames", "1024"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "128 mels x 1024 frames, 527 classes"
    assert [line.split()[0] for line in lines[3:]] == ["mast_base", "ast_base"]
    assert all(cell in lines[3] for cell in ("51.39 M", "20.35 G", "26.30 G", "4096 (16x256)", "5.08x / 4.96x"))
    assert "130.51 G" in lines[4]


def test_command_refuses_unknown_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mast_bas"])
    assert "did you mean mast_base" in capsys.readouterr().err


def test_command_says_what_computes_the_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--backends", "--backend", "reference", "mast_nano"])
    assert capsys.readouterr().out.splitlines() == ["mast_nano", "  stages.0.0 ... stages.3.0: reference"]
    main(["--backends", "ast_base"])
    assert capsys.readouterr().out.splitlines() == ["ast_base", "  blocks.0 ... blocks.11: operators"]


ENCODER = """
import torch
from torch import nn
import mast

class Rows(mast.SpectrogramModel):
    def __init__(self, num_classes=0):
        super().__init__({"num_classes": num_classes}, num_features=8)
        self.embed = nn.Conv2d(1, 8, 16, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.reset_classifier(num_classes)

    @property
    def stride(self):
        return 16, 16

    def forward_grid(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)

@mast.register_model("rows")
def rows(**overrides):
    return Rows(**overrides)
"""


def test_a_new_encoder_needs_blocks_stride_and_grid_alone(tmp_path: Path) -> None:
    (tmp_path / "encoder_of_rows.py").write_text(ENCODER)
    check = """
import encoder_of_rows, mast, torch
model = mast.create_model("rows", num_classes=3)
assert model(torch.zeros(2, 1, 128, 64)).shape == (2, 3) and model.backends() == {}
names = ("embed.weight", "blocks.0.1.weight", "blocks.2.0.bias", "norm.bias")
assert [model.layer_of(name) for name in names] == [0, 1, 3, 4]
assert model.num_layers == 4 and "norm.bias" in model.no_weight_decay()
from mast.__main__ import main
main(["rows", "--import", "encoder_of_rows", "--frames", "64"])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(mast.__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("rows"))
    assert "32 (8x4)" in row and "0.00 G" in row
