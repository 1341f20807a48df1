"""Exported files against the eager model, below and above the reference length."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mast
from mast.export import describe, export_program, shortest_input
from mast.exportable import ExportableAttention, ExportableLogMel, ExportableTable, exportable
from mast.fast.widened import RelativeTable
from mast.model import PoolingAttention

LABELS = {"kind": ["a", "b", "c"], "place": ["near", "far"]}
RATE = 16000


def small(**options) -> mast.MAST:
    """Two stages with pooling along both axes, and weights that give logits of some size."""
    torch.manual_seed(0)
    strides = {"q_strides": [[1, 1], [2, 2]], "kv_strides": [[2, 4], [1, 2]]}
    options = {"embed_dim": 16, "depths": [1, 1], "mels": 32, "frames": 64, "num_classes": 5, **strides, **options}
    model = mast.create_model("mast_pico", **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.15)
    return model


def noise(batch: int, seconds: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    size = round(seconds * RATE)
    return torch.randn(batch, size, generator=generator) * torch.linspace(1e-3, 0.3, size)


@pytest.fixture(scope="module")
def frontend() -> mast.LogMel:
    return mast.LogMel(num_mels=32)


@pytest.fixture(scope="module")
def onnx_file(frontend, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return mast.export_onnx(small(), frontend, tmp_path_factory.mktemp("onnx") / "model.onnx", labels=LABELS)


@pytest.mark.parametrize("seconds", [0.085, 0.3, 0.65, 1.0, 2.3])
def test_onnx_equals_eager_at_any_length_and_batch(seconds, onnx_file, frontend) -> None:
    model, exported = small(), mast.open_exported(onnx_file, threads=1)
    for batch in (1, 3):
        waveform = noise(batch, seconds)
        with torch.no_grad():
            tokens = model.forward_features(frontend(waveform))
        found = exported(waveform)
        assert list(found) == ["logits", "features"]
        for name, expected in (("logits", model.head(tokens.mean(1))), ("features", tokens.mean(1))):
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5)


def test_onnx_is_told_where_sounds_end(tmp_path) -> None:
    """It pads by the last frame, and leaves the tokens of padding out; of clips that tell nothing all is sound."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = small(depths=[1], q_strides=[[1, 1]], kv_strides=[[2, 2]], mask_padding=True)
    padded = mast.LogMel(num_mels=32, pad="edge")
    exported = mast.open_exported(mast.export_onnx(model, padded, tmp_path / "model.onnx", labels=LABELS), threads=1)
    assert exported.metadata["inputs"] == ["waveform", "samples"]
    for batch, seconds in ((1, 0.3), (3, 0.7)):
        waveform, samples = ending(batch, seconds)
        for told in (samples, None):
            whole = torch.full((batch,), waveform.shape[1]) if told is None else told
            with torch.no_grad():
                frames = padded.valid_frames(whole, waveform.shape[1])
                expected = model.features(padded(waveform, whole), frames)
            found = exported(waveform, told)
            torch.testing.assert_close(found["features"], expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(found["logits"], model.head(expected), rtol=0, atol=1e-5)


def ending(batch: int, seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of which ever less is sound, and how many samples are."""
    waveform = noise(batch, seconds)
    samples = torch.linspace(waveform.shape[1], 500, batch + 1)[1:].long()
    return waveform * (torch.arange(waveform.shape[1]) < samples[:, None]), samples


@pytest.mark.parametrize("pad", mast.frontend.PADS)
def test_a_frontend_without_branches_pads_alike(pad: str) -> None:
    for frames in (None, 40, 100):  # of clips that have 68
        frontend = mast.LogMel(num_mels=32, pad=pad, fixed_frames=frames)
        waveform, samples = ending(3, 0.7)
        for told in (samples, torch.full((3,), waveform.shape[1])):
            found = ExportableLogMel(frontend)(waveform, told)
            torch.testing.assert_close(found, frontend(waveform, told), rtol=0, atol=1e-5)


class Branching(mast.SpectrogramModel):
    """What it does depends on the length: a tracer sees one way of it, as of backbones of other libraries."""

    def __init__(self) -> None:
        super().__init__({"num_classes": 2}, num_features=8)
        self.patches = nn.Conv2d(1, 8, (32, 16), (32, 16))
        self.blocks = [nn.Identity()]
        self.reset_classifier(2)

    def forward_grid(self, x: torch.Tensor) -> torch.Tensor:
        if missing := -x.shape[3] % 16:
            x = nn.functional.pad(x, (0, missing))
        return self.patches(x).movedim(1, -1)

    @property
    def stride(self) -> tuple[int, int]:
        return 32, 16


def test_an_encoder_that_is_not_known_at_all_lengths_is_exported_for_one(frontend, tmp_path) -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    with pytest.raises(ValueError, match="no frames of its own: give the length"):
        mast.save_program(model, frontend, tmp_path / "model.pt2")
    exported = mast.open_exported(mast.save_program(model, frontend, tmp_path / "model.pt2", length=9000))
    for batch in (1, 3):
        waveform = noise(batch, 9000 / RATE)
        with torch.no_grad():
            torch.testing.assert_close(exported(waveform)["logits"], model(frontend(waveform)), atol=1e-4, rtol=0)
    for size in (8000, 9160):
        with pytest.raises(ValueError, match="just 9000 of the last"):
            exported(torch.zeros(1, size))


def test_the_file_says_what_it_is(onnx_file, frontend) -> None:
    import onnx

    exported = mast.open_exported(onnx_file)
    assert exported.labels == LABELS and exported.metadata["frontend"] == frontend.config
    assert mast.LogMel(**exported.metadata["frontend"]).config == frontend.config
    model = dict(exported.metadata["model"])
    assert mast.create_model(model.pop("name"), **model).config == small().config
    assert exported.metadata["shortest"] == frontend.samples_for(4)
    for wrong in (torch.zeros(1, frontend.samples_for(3)), torch.zeros(4000), torch.zeros(1, 1, 32, 64)):
        with pytest.raises(ValueError, match=r"expected a waveform \(B, samples\) with at least"):
            exported(wrong)
    graph = onnx.load(onnx_file).graph
    assert [(d.dim_param or d.dim_value) for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", "samples"]
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == ["batch", 5]
    onnx.checker.check_model(onnx.load(onnx_file), full_check=True)


def test_eight_bits_are_few_and_near(onnx_file, frontend, tmp_path) -> None:
    import onnx

    file = mast.quantize_onnx(onnx_file, tmp_path / "int8.onnx")
    exported, whole = mast.open_exported(file, threads=1), mast.open_exported(onnx_file, threads=1)
    assert exported.metadata == whole.metadata | {"quantization": "int8"}
    linear = [module for module in small().modules() if isinstance(module, nn.Linear)]
    products = [node for node in onnx.load(file).graph.node if node.op_type == "MatMulInteger"]
    # All but the head; the frontend's two stay float.
    assert len(products) == len(linear) - 1
    waveform = noise(4, 0.65)
    found, expected = exported(waveform)["logits"], whole(waveform)["logits"]
    assert 0 < (found - expected).abs().max() < 0.04 * expected.abs().max()
    with pytest.raises(ValueError, match="quantized already"):
        mast.quantize_onnx(file, tmp_path / "again.onnx")


def test_a_program_of_spectrograms_equals_eager(tmp_path) -> None:
    model = small(depths=[1], q_strides=[[1, 1]], kv_strides=[[2, 2]], num_classes=0)
    file = mast.save_program(model, None, tmp_path / "model.pt2")
    exported = mast.open_exported(file)
    assert exported.metadata["outputs"] == ["features"] and exported.metadata["input"] == "spectrogram"
    for batch, frames in ((1, exported.metadata["shortest"]), (2, 64), (3, 150)):
        x = torch.randn(batch, 1, 32, frames)
        with torch.no_grad():
            torch.testing.assert_close(exported(x)["features"], model(x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected a spectrogram"):
        exported(torch.randn(1, 1, 32, exported.metadata["shortest"] - 1))


def flipped(file, path, bit: int):
    """A copy of ``file`` at ``path`` with one bit flipped."""
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return path


def test_a_flipped_bit_in_an_onnx_file_is_refused(onnx_file, tmp_path) -> None:
    import onnx

    onnx.checker.check_model(onnx.load(str(onnx_file)))  # for others the checksum is metadata like any other
    bits = 8 * (onnx_file.stat().st_size - 81)  # those of the checksum's own name may go
    for bit in torch.randint(bits, (40,), generator=torch.Generator().manual_seed(0)).tolist():
        with pytest.raises(ValueError, match=r"bad\.onnx is damaged: its checksum differs"):
            mast.open_exported(flipped(onnx_file, tmp_path / "bad.onnx", bit))
    with pytest.raises(ValueError, match=r"bad\.onnx is damaged: its checksum differs"):
        mast.quantize_onnx(tmp_path / "bad.onnx", tmp_path / "int8.onnx")


def test_an_onnx_file_without_a_checksum_is_read(onnx_file, tmp_path) -> None:
    """As earlier versions wrote them."""
    old = tmp_path / "old.onnx"
    old.write_bytes(onnx_file.read_bytes()[:-81])
    x = noise(1, 0.3)
    assert torch.equal(mast.open_exported(old)(x)["logits"], mast.open_exported(onnx_file)(x)["logits"])


def test_a_flipped_bit_in_a_program_is_refused(tmp_path) -> None:
    model = small(depths=[1], q_strides=[[1, 1]], kv_strides=[[2, 2]], num_classes=0)
    file = mast.save_program(model, None, tmp_path / "model.pt2")
    weight = file.read_bytes().index(model.norm.weight.detach().numpy().tobytes())
    for bit in (8 * weight, 8 * weight + 100):
        with pytest.raises(ValueError, match=r"bad\.pt2 is damaged .*(CRC|checksum)"):
            mast.open_exported(flipped(file, tmp_path / "bad.pt2", bit))
    bits = torch.randint(8 * file.stat().st_size, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    refused, x, expected = 0, None, None
    for bit in bits:
        try:
            found = mast.open_exported(flipped(file, tmp_path / "bad.pt2", bit))
        except ValueError as error:
            assert "bad.pt2 is damaged" in str(error)
            refused += 1
        else:  # between the parts of the archive
            if expected is None:
                exported = mast.open_exported(file)
                x = torch.randn(1, 1, 32, exported.metadata["shortest"])
                expected = exported(x)
            assert all(torch.equal(value, expected[name]) for name, value in found(x).items())
    assert refused >= 15


def test_fixed_frames_and_cut_positions_in_a_program() -> None:
    """Clips shorter and longer than the frames that all spectrograms get."""
    frontend = mast.LogMel(num_mels=32, fixed_frames=50)
    model = mast.create_model("ast_base", embed_dim=16, depth=1, heads=2, mels=32, frames=64, num_classes=3)
    cut = mast.create_model("ast_base", **model.config | {"short_positions": "crop", "pool": "patch"}).eval()
    cut.load_state_dict(model.state_dict())
    program = export_program(cut, frontend).module()
    for seconds in (0.2, 0.515, 1.1):
        x = noise(2, seconds)
        with torch.no_grad():
            assert frontend(x).shape == (2, 1, 32, 50)
            torch.testing.assert_close(program(x)[0], cut(frontend(x)), rtol=0, atol=1e-5)
    spectrograms = export_program(cut).module()
    for frames in (30, 64, 90):
        x = torch.randn(2, 1, 32, frames)
        with torch.no_grad():
            torch.testing.assert_close(spectrograms(x)[0], cut(x), rtol=0, atol=1e-5)


def test_ast_with_other_positions() -> None:
    torch.manual_seed(0)
    model = mast.create_model("ast_base", embed_dim=16, depth=1, heads=2, mels=32, frames=64, num_classes=3).eval()
    nn.init.normal_(model.positions)
    program = export_program(model, mels=64)
    for batch, frames in ((1, 64), (2, max(40, shortest_input(program))), (2, 131)):
        x = torch.randn(batch, 1, 64, frames)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x)[0], model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("transform", ["fft", "product"])
def test_frontend_without_branches_equals_log_mel(transform) -> None:
    for options in ({}, {"center_clips": True, "num_mels": 40}, {"sample_rate": 8000, "mean": None, "std": None}):
        frontend = mast.LogMel(**options)
        found = ExportableLogMel(frontend, transform)(noise(2, 1.3))
        torch.testing.assert_close(
            found, frontend(noise(2, 1.3)), rtol=0, atol=2e-3 if transform == "product" else 1e-5
        )


@pytest.mark.parametrize(("q_stride", "k_stride"), [(1, 4), (2, 1), (1, 1), (2, 3)])
def test_tables_of_any_length(q_stride, k_stride) -> None:
    table = RelativeTable(12, q_stride, k_stride, 3)
    nn.init.normal_(table.table)
    twin = ExportableTable(table)
    for length in (1, 5, 12, 13, 40):
        sizes = math.ceil(length / q_stride), math.ceil(length / k_stride)
        torch.testing.assert_close(twin(*sizes), table(*sizes), rtol=0, atol=2e-5)


def test_the_model_itself_is_left_alone() -> None:
    model = small(drop_path=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = exportable(model)
    assert not twin.training and model.training
    assert any(isinstance(module, ExportableAttention) for module in twin.modules())
    assert not any(isinstance(module, PoolingAttention) for module in twin.modules())
    assert not any(isinstance(module, ExportableAttention) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_errors_name_what_is_wrong(tmp_path) -> None:
    with pytest.raises(ValueError, match="labels name 2 classes"):
        describe(small(), None, {"x": ["a", "b"]})
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        mast.open_exported(tmp_path / "none.onnx")
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match="must end in"):
        mast.open_exported(tmp_path / "model.bin")
    for name in ("bad.onnx", "bad.pt2"):
        (tmp_path / name).write_bytes(np.arange(200, dtype=np.uint8).tobytes())
        with pytest.raises(ValueError, match="damaged"):
            mast.open_exported(tmp_path / name)
    with pytest.raises(ValueError, match="transform"):
        ExportableLogMel(mast.LogMel(), "fast")  # type: ignore[arg-type]
