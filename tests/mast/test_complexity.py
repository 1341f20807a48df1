"""Counts stand where the published figures stand, and agree with torch's own counter on the written-out formula."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mast
from mast import attention as attention_module
from mast import relative
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
def test_agrees_with_torch_on_the_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "attention", relative.reference_attention)
    monkeypatch.setenv("MAST_NATIVE", "0")  # compiled functions are no operators that could be counted
    small = {"embed_dim": 8, "depths": (1, 2, 1, 1)} if name == "mast_pico" else {"embed_dim": 24, "depth": 2}
    small |= {} if name == "mast_pico" else {"heads": 2}
    model = mast.create_model(name, num_classes=3, **small).eval()
    # The counter doesn't know the CPU's fused attention; it sees the products of the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 128, 208))
    assert counter.get_total_flops() == 2 * measure_module(model, frames=208).total_macs


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
