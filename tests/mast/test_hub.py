"""A saved model comes back whole, and nothing else comes back silently."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mast
from mast import files, hub
from mast.hub import load_weights

SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1)}
X = torch.linspace(-1, 1, 128 * 60).reshape(1, 1, 128, 60)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return mast.create_model("mast_pico", num_classes=3, **SMALL).eval()


@pytest.fixture
def folder(model: torch.nn.Module, tmp_path: Path) -> Path:
    labels = {"sound": ["dog", "rain", "clock"]}
    return model.save_pretrained(
        tmp_path / "a" / "model", frontend=mast.LogMel(mean=-3.0, std=2.0), labels=labels, extra={"epoch": 3}
    )


def test_round_trip(model: torch.nn.Module, folder: Path) -> None:
    again = mast.from_pretrained(folder)
    assert torch.equal(again.model(X), model(X)) and not again.model.training
    assert again.model.name == "mast_pico" and again.model.config == model.config
    assert again.frontend is not None and again.frontend.config["mean"] == -3.0
    assert again.labels == {"sound": ["dog", "rain", "clock"]} and again.extra == {"epoch": 3}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_round_trip_without_frontend_and_of_ast(tmp_path: Path) -> None:
    model = mast.create_model("ast_base", embed_dim=16, depth=1, heads=2, frames=60).eval()
    again = mast.load_pretrained(mast.save_pretrained(model, tmp_path))
    assert again.frontend is None and again.labels == {} and torch.equal(again.model(X), model(X))


@pytest.mark.parametrize("classes", [0, 5])
def test_another_number_of_classes_makes_a_new_head_and_says_so(folder: Path, classes: int, caplog) -> None:
    again = mast.load_pretrained(folder, num_classes=classes)
    assert again.model(X).shape == (1, classes or again.model.num_features)
    names = again.report.mismatched + again.report.unexpected
    assert names == ["head.bias", "head.weight"] and "the head is new" in caplog.text


def test_failed_write_leaves_the_old_model(folder: Path, model: torch.nn.Module, monkeypatch) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def broken(state, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("mast.hub.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def edit(folder: Path, **model_fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"].update(model_fields)
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mast_picco"}, "did you mean mast_pico"),
        ({"embed_dim": 16}, "weights are of another model"),
        ({"num_classes": 4}, "weights are of another model"),
        ({"flavour": 1}, "no argument flavour"),
    ],
)
def test_config_of_another_model_is_refused(folder: Path, fields: dict, message: str) -> None:
    edit(folder, **fields)
    with pytest.raises(mast.LoadError, match=message):
        mast.load_pretrained(folder)


def test_missing_and_unknown_weights_are_reported(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["surplus.weight"] = state.pop("norm.weight")
    save_file(state, folder / "model.safetensors")
    edit(folder)
    with pytest.raises(mast.LoadError, match=r"1 missing: norm\.weight; 1 unexpected: surplus\.weight"):
        mast.load_pretrained(folder)


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(mast.LoadError, match=r"model\.safetensors is damaged"):
        mast.load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(mast.LoadError, match=r"config\.json is not JSON"):
        mast.load_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        mast.load_pretrained(tmp_path)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_never_gives_another_model(folder: Path, model: torch.nn.Module, name: str) -> None:
    """Anywhere in either file it is refused, or nothing but a checksum's own name has changed."""
    path = folder / name
    whole, expected = path.read_bytes(), model(X)
    bits = torch.randint(len(whole) * 8, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    refused = 0
    for bit in bits:
        flip(path, bit)
        try:
            again = mast.load_pretrained(folder)
        except mast.LoadError as error:
            assert str(folder) in str(error)
            refused += 1
        else:
            assert torch.equal(again.model(X), expected) and again.frontend.config["mean"] == -3.0
            assert again.labels == {"sound": ["dog", "rain", "clock"]} and again.extra == {"epoch": 3}
        path.write_bytes(whole)
    assert refused >= 30


def test_weights_of_another_save_are_refused_and_edits_say_how(folder: Path, model: torch.nn.Module) -> None:
    config = (folder / "config.json").read_text()
    with torch.no_grad():
        model.norm.weight.add_(1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(config)  # as if killed between the two files
    with pytest.raises(mast.LoadError, match=r"of another save than config\.json"):
        mast.load_pretrained(folder)
    (folder / "config.json").write_text(config.replace("-3.0", "-2.0"))
    with pytest.raises(mast.LoadError, match=r'take its entry "sha256" out'):
        mast.load_pretrained(folder)


def safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


HOSTILE = {
    "length beyond the file": safetensors({}, length=2**40),
    "length of all bits": safetensors({}, length=2**64 - 1),
    "no JSON": safetensors(b"\xff{"),
    "deeply nested": safetensors(b"[" * 100_000),
    "offsets beyond the data": safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234"),
    "offsets backwards": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
    "shape that overflows": safetensors({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}, b"1234"),
    "shape that is not the data's": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "one within another": safetensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"1234"
    ),
    "unknown dtype": safetensors({"a": {"dtype": "PY", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "a pickle": b"cos\nsystem\n(S'exit 1'\ntR.",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused(folder: Path, kind: str) -> None:
    edit(folder)
    (folder / "model.safetensors").write_bytes(HOSTILE[kind])
    with pytest.raises(mast.LoadError, match="damaged or no safetensors file"):
        mast.load_pretrained(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"format": 1, "model": 5}', '{"format": 1, "model": ["name"]}'])
def test_a_hostile_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(mast.LoadError, match=r"config\.json"):
        mast.load_pretrained(folder)


def test_load_weights_lets_only_the_head_differ(model: torch.nn.Module) -> None:
    other = mast.create_model("mast_pico", num_classes=9, **SMALL)
    report = load_weights(other, model.state_dict())
    assert report.mismatched == ["head.bias", "head.weight"] and not report.missing
    assert torch.equal(other.norm.weight, model.norm.weight)
    with pytest.raises(mast.LoadError, match="another model"):
        load_weights(mast.create_model("mast_pico", **{**SMALL, "depths": (1, 2, 1, 1)}), model.state_dict())


def test_labels_must_fit_the_head(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels have \{'sound': 2\} classes, the model's head has 3"):
        model.save_pretrained(tmp_path, labels={"sound": ["a", "b"]})


def test_a_model_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no registry name"):
        mast.save_pretrained(mast.MAST(**SMALL), tmp_path)


def test_a_reader_gets_one_save_while_another_process_saves_the_next(folder: Path, monkeypatch) -> None:
    """It looks when the new weights are in place already and what describes them is not yet."""
    other = mast.create_model("mast_pico", **SMALL)
    between, looked = threading.Event(), threading.Event()
    move = files.move_into_place

    def slowly(file: Path, target: Path) -> None:
        if target.name == "config.json":
            between.set()
            assert looked.wait(60)
        move(file, target)

    monkeypatch.setattr(files, "move_into_place", slowly)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: (looked.set(), saver.join()))
    saver = threading.Thread(target=mast.save_pretrained, args=(other, folder), kwargs={"extra": {"epoch": 4}})
    saver.start()
    assert between.wait(60)
    loaded = mast.load_pretrained(folder)
    assert loaded.extra == {"epoch": 4}
    own = other.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.model.state_dict().items())
