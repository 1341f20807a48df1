"""The export tool: what it writes equals the checkpoint, what would not is not kept, and what 8 bits cost is told."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import mast
from avssl.cli import parse
from avssl.config.inference import ExportConfig
from avssl.pipelines import export
from avssl.pipelines.export import export_model

ROOT = Path(__file__).parents[3]
LABELS = {"class": ["high", "low"]}


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A classifier of one block, whose reference input has more mels than its frontend gives."""
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depths": [1], "q_strides": [[1, 1]], "kv_strides": [[2, 2]], "frames": 64}
    model = mast.create_model("mast_pico", num_classes=2, **options)
    torch.nn.init.normal_(model.get_submodule("head").weight)
    folder = tmp_path_factory.mktemp("checkpoint")
    frontend = mast.LogMel(num_mels=32)
    return mast.save_pretrained(model, folder, frontend=frontend, labels=LABELS, extra={"clip_seconds": 0.5})


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Tones of two classes in a CSV's files."""
    folder = tmp_path_factory.mktemp("tones")
    time = np.arange(12000) / 16000
    rows = ["path,class,split"]
    for number in range(6):
        name = ("high", "low")[number % 2]
        wave = 0.2 * np.sin(2 * np.pi * (2000 if name == "high" else 200) * (1 + number / 20) * time)
        wavfile.write(folder / f"{number}.wav", 16000, (32767 * wave).astype(np.int16))
        rows.append(f"{number}.wav,{name},test")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder / "tones.csv"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


def config(checkpoint: Path, output: Path, *options: str) -> ExportConfig:
    usual = ["--checkpoint", str(checkpoint), "--output", str(output), "--threads", "1", "--data.num_workers", "0"]
    return parse(ExportConfig, [*usual, *options])


def test_int8_of_real_clips_tells_what_it_costs(checkpoint: Path, media: Path, tmp_path, caplog) -> None:
    output = tmp_path / "out" / "model.onnx"
    with caplog.at_level("INFO"):
        summary = export_model(config(checkpoint, output, "--data", str(media), "--quantize", "int8"))
    assert json.loads(output.with_suffix(".json").read_text())["int8"] == summary["int8"]
    assert summary["float32"]["largest_difference"] <= 1e-4 < summary["int8"]["largest_difference"]
    assert summary["float32"]["clips"] == summary["int8"]["clips"] == 6
    assert {0.25, 0.5, 0.85} <= set(summary["float32"]["seconds"])
    exported, loaded = mast.open_exported(output), mast.from_pretrained(checkpoint)
    assert exported.metadata["quantization"] == "int8" and exported.labels == LABELS
    hits = {"model": 0, "file": 0}
    for number in range(6):
        wave = wavfile.read(media.parent / f"{number}.wav")[1].astype(np.float32)[2000:10000] / 32768
        with torch.no_grad():
            logits = loaded.model(loaded.frontend(torch.from_numpy(wave)[None]))
        hits["model"] += int(logits.argmax() == number % 2)
        hits["file"] += int(exported(torch.from_numpy(wave)[None])["logits"].argmax() == number % 2)
    top1 = summary["int8"]["top1"]["class"]
    assert {name: round(6 * top1[name]) for name in hits} == hits and top1["clips"] == 6
    assert "int8: class: top-1 of the model" in caplog.text


def test_a_spectrogram_has_the_mels_of_the_frontend(checkpoint: Path, tmp_path) -> None:
    summary = export_model(config(checkpoint, tmp_path / "model.pt2", "--input", "spectrogram"))
    exported = mast.open_exported(tmp_path / "model.pt2")
    assert exported.metadata["input"] == "spectrogram"
    assert exported(torch.zeros(2, 1, 32, 100))["logits"].shape == (2, 2)
    assert summary["float32"]["clips"] == 0 and "int8" not in summary


def test_a_file_that_differs_is_not_kept(checkpoint: Path, tmp_path, monkeypatch, capsys) -> None:
    write = mast.save_program

    def wrong(model: mast.SpectrogramModel, *rest, **options) -> Path:
        with torch.no_grad():
            model.get_submodule("head").bias += 1e-3
            path = write(model, *rest, **options)
            model.get_submodule("head").bias -= 1e-3
        return path

    monkeypatch.setattr(mast, "save_program", wrong)
    spec = importlib.util.spec_from_file_location("export_tool", ROOT / "tools" / "export.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "model.pt2")]
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    with pytest.raises(SystemExit, match=r"was not written: the file differs from the model by 1\.0e-03"):
        tool.main()
    assert not list(tmp_path.glob("*model*"))


def test_a_difference_that_is_no_number_is_not_small() -> None:
    comparison = export.Comparison()
    comparison.add({"logits": torch.tensor([1.0])}, {"logits": torch.tensor([float("nan")])})
    comparison.add({"logits": torch.tensor([1.0])}, {"logits": torch.tensor([1.0])})
    assert np.isnan(comparison.largest)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output", "model.bin"], r"must end in \.onnx or \.pt2"),
        (["--output", "model.pt2", "--quantize", "int8"], r"int8 is for \.onnx"),
        (["--batch_size", "0"], "at least 1"),
    ],
)
def test_options_that_make_no_sense(options, told, checkpoint: Path, tmp_path) -> None:
    with pytest.raises(ValueError, match=told):
        export_model(config(checkpoint, tmp_path / "model.onnx", *options))
