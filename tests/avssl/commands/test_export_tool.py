"""The export tool: what it writes equals the checkpoint, what would not is not kept, and what 8 bits cost is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import mast
from avssl.cli import read_settings
from avssl.commands import export, main
from avssl.commands.export import export_model
from avssl.config import ExportConfig

LABELS = {"label": ["high", "low"]}


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
    rows = ["path,label,split"]
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
    return read_settings(ExportConfig, [*usual, *options])


@pytest.fixture(scope="module")
def run(checkpoint: Path, media: Path, tmp_path_factory) -> tuple[dict, Path, Path]:
    """One run of the tool's work: its summary, its output, and the float32 file on the way to it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_CACHE", str(folder / "cache"))
        quantize = mast.quantize_onnx
        patch.setattr(mast, "quantize_onnx", lambda a, b: quantize(shutil.copy(a, folder / "whole.onnx"), b))
        output = folder / "out" / "model.onnx"
        options = ["--data", str(media), "--quantize", "int8", "--input", "spectrogram"]
        return export_model(config(checkpoint, output, *options)), output, folder / "whole.onnx"


def test_int8_of_real_clips_tells_what_it_costs(run, checkpoint: Path, media: Path) -> None:
    summary, output, whole = run
    assert json.loads(output.with_suffix(".json").read_text())["int8"] == summary["int8"]
    assert summary["float32"]["largest_difference"] <= 1e-4 < summary["int8"]["largest_difference"]
    assert summary["float32"]["clips"] == summary["int8"]["clips"] == 6
    assert {0.25, 0.5, 0.85} <= set(summary["float32"]["seconds"])
    assert summary["bytes"] == output.stat().st_size and summary["float32"]["bytes"] == whole.stat().st_size
    exported, loaded = mast.open_exported(output), mast.from_pretrained(checkpoint)
    assert exported.metadata["quantization"] == "int8" and exported.labels == LABELS
    hits = {"model": 0, "file": 0}
    for number in range(6):
        wave = wavfile.read(media.parent / f"{number}.wav")[1].astype(np.float32)[2000:10000] / 32768
        spectrogram = loaded.frontend(torch.from_numpy(wave)[None])
        with torch.no_grad():
            hits["model"] += int(loaded.model(spectrogram).argmax() == number % 2)
        hits["file"] += int(exported(spectrogram)["logits"].argmax() == number % 2)
    top1 = summary["int8"]["top1"]["label"]
    assert {name: round(6 * top1[name]) for name in hits} == hits and top1["clips"] == 6


def test_a_spectrogram_has_the_mels_of_the_frontend(run) -> None:
    exported = mast.open_exported(run[2])
    assert exported.metadata["input"] == "spectrogram" and exported.metadata["model"]["mels"] == 128
    assert exported(torch.zeros(2, 1, 32, 100))["logits"].shape == (2, 2)


def test_a_file_that_differs_is_not_kept(run, checkpoint: Path, tmp_path, monkeypatch, capsys) -> None:
    """The file is that of the checkpoint, the checkpoint another by then."""
    loaded = mast.from_pretrained(checkpoint)
    with torch.no_grad():
        loaded.model.get_submodule("head").bias += 1e-3
    mast.save_pretrained(loaded.model, tmp_path / "changed", frontend=loaded.frontend, labels=LABELS)
    monkeypatch.setattr(mast, "export_onnx", lambda model, frontend, path, **_: shutil.copy(run[2], path))
    output = tmp_path / "out" / "model.onnx"
    arguments = ["--checkpoint", str(tmp_path / "changed"), "--output", str(output), "--input", "spectrogram"]
    assert main(["export", *arguments]) == 1
    assert "was not written: the file differs from the model by 1.0e-03" in capsys.readouterr().err
    assert not list(output.parent.iterdir())
    assert export_model(read_settings(ExportConfig, [*arguments, "--tolerance", "2e-3"]))
    assert output.read_bytes() == run[2].read_bytes()


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
        (["--threads", "-1"], "threads: must be at least 0, got -1"),
    ],
)
def test_options_that_make_no_sense(options, told, checkpoint: Path, tmp_path) -> None:
    with pytest.raises(ValueError, match=told):
        export_model(config(checkpoint, tmp_path / "model.onnx", *options))
