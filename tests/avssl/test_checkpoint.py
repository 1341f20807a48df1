"""Damaged checkpoints are refused, or hold the very same values; a run goes on from the newest whole one."""

import errno
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from avssl.checkpoint import BEST, LAST, PREVIOUS, CheckpointStore, read_checkpoint, read_head, verify


def state_of(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "task": {"weight": torch.randn(64, 8, generator=generator), "bias": torch.randn(8, generator=generator)},
        "progress": {"step": step},
        "settings": {"kind": "test"},
        "wandb_id": None,
        "sharded": False,
    }


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Of a run of 6 steps that kept its third and saved its last after the fourth and the sixth."""
    store = CheckpointStore(Fabric(accelerator="cpu", devices=1), tmp_path / "checkpoints")
    for name, step in (("step-3.ckpt", 3), (BEST, 4), (LAST, 4), (LAST, 6)):
        store.save(name, state_of(step))
    return store


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def damage(path: Path) -> None:
    """Flips a bit of a weight."""
    start = path.read_bytes().index(torch.load(path, weights_only=True)["task"]["weight"].numpy().tobytes())
    flip(path, 8 * start + 100)


def test_a_flipped_bit_is_refused_or_harmless(store: CheckpointStore) -> None:
    path = store.folder / LAST
    whole, expected = path.read_bytes(), state_of(6)
    bits = torch.randint(len(whole) * 8, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    refused = 0
    for bit in bits:
        flip(path, bit)
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # between the parts of the archive
            assert {key: state[key] for key in ("progress", "settings", "wandb_id", "sharded")} == {
                key: expected[key] for key in ("progress", "settings", "wandb_id", "sharded")
            }
            assert all(torch.equal(state["task"][name], value) for name, value in expected["task"].items())
        path.write_bytes(whole)
    assert refused >= 60


def test_a_flipped_weight_is_refused_by_every_reader(store: CheckpointStore) -> None:
    path = store.folder / LAST
    damage(path)
    for read in (verify, read_checkpoint, lambda path: store.load(path, {}), lambda path: store.latest(str(path))):
        with pytest.raises(ValueError, match=r"last\.ckpt .* is damaged: .*(checksum|CRC)"):
            read(path)
    assert read_head(path)["progress"] == {"step": 6}  # which is whole


@pytest.mark.parametrize("how", ["flipped", "cut short", "empty", "deleted"])
def test_a_damaged_last_one_falls_back_to_the_newest_whole(
    store: CheckpointStore, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = store.folder / LAST
    assert store.latest("auto") == last
    if how == "flipped":
        damage(last)
    elif how == "deleted":
        last.unlink()
    else:
        os.truncate(last, 0 if how == "empty" else last.stat().st_size // 2)
    damage(store.folder / BEST)
    assert store.latest("auto") == store.folder / PREVIOUS
    assert "going on from" in caplog.text and "the newest whole one, of step 4" in caplog.text
    (store.folder / PREVIOUS).write_bytes(b"")
    store.save("step-12.ckpt", state_of(12))  # 12 is newer than 3, whatever its name begins with
    assert store.latest("auto") == store.folder / "step-12.ckpt"
    (store.folder / "step-12.ckpt").unlink()
    store.save("mean.ckpt", state_of(9))  # not the run's
    assert store.latest("auto") == store.folder / "step-3.ckpt"
    (store.folder / "step-3.ckpt").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"no other checkpoint of the run is whole: copy one back, or give --resume"):
        store.latest("auto")
    assert store.latest("none") is None


def test_a_damaged_last_one_does_not_take_the_place_of_the_previous(store: CheckpointStore) -> None:
    damage(store.folder / LAST)
    assert store.latest("auto") == store.folder / PREVIOUS
    store.save("step-5.ckpt", state_of(5))
    store.save(LAST, state_of(5))
    assert [read_head(store.folder / name)["progress"]["step"] for name in (PREVIOUS, LAST)] == [4, 5]
    verify(store.folder / PREVIOUS)
    store.save(LAST, state_of(7))
    assert [read_head(store.folder / name)["progress"]["step"] for name in (PREVIOUS, LAST)] == [5, 7]


def test_a_disk_that_does_not_read_is_no_verdict_on_the_file(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def testzip(archive: zipfile.ZipFile) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", testzip)
    with pytest.raises(OSError, match="Input/output error"):
        store.latest("auto")


def test_without_any_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(Fabric(accelerator="cpu", devices=1), tmp_path).latest("auto") is None


def test_without_links_the_last_one_is_written_all_the_same(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store.save(LAST, state_of(8))
    assert read_head(store.folder / LAST)["progress"] == {"step": 8} and not (store.folder / PREVIOUS).exists()


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("numbers", [64, 10**9])
def test_weights_that_claim_to_be_larger_than_their_file_are_refused(tmp_path: Path, numbers: int) -> None:
    """Else the memory behind them would be read."""
    honest, hostile = tmp_path / "honest.ckpt", tmp_path / "hostile.ckpt"
    torch.save({"settings": {}, "weight": torch.arange(4.0)}, honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(hostile, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):  # 4 is the length of the storage, and the shape of the tensor
                claim = b"J" + numbers.to_bytes(4, "little")
                assert b"K\x04tq\tQK\x00K\x04\x85" in data
                data = data.replace(b"K\x04tq\tQK\x00K\x04\x85", claim + b"tq\tQK\x00" + claim + b"\x85")
            target.writestr(name, data)
    with pytest.raises(ValueError, match=r"hostile\.ckpt is not a checkpoint of avssl"):
        read_checkpoint(hostile)
    with suppress(ValueError):
        assert read_head(hostile) == {"settings": {}}, "what it reads has no weights"


@pytest.mark.parametrize("kind", ["pickle", "old torch file", "torch file", "compressed", "tar of torch 0.1"])
def test_foreign_and_old_pickles_are_refused_and_run_nothing(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "other.ckpt", tmp_path / "mark"
    state = state_of(1) | {"payload": Payload(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state))
    elif kind == "old torch file":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "tar of torch 0.1":
        import tarfile

        (tmp_path / "pickle").write_bytes(pickle.dumps(Payload(mark), protocol=2))
        with tarfile.open(path, "w") as archive:
            for name in ("storages", "tensors", "pickle"):
                archive.add(tmp_path / "pickle", name)
    else:
        torch.save(state if kind == "torch file" else state_of(1), path)
    if kind == "compressed":  # a small file that fills the memory
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
    for read in (read_checkpoint, read_head):
        with pytest.raises(ValueError, match=r"is not a checkpoint of avssl"):
            read(path)
    assert not mark.exists()


def test_a_reader_gets_one_state_while_a_training_saves_the_next(store: CheckpointStore, monkeypatch) -> None:
    """The file is replaced after its bytes were compared, before they are read."""
    compare = zipfile.ZipFile.testzip

    def saving(archive: zipfile.ZipFile) -> str | None:
        wrong = compare(archive)
        monkeypatch.setattr(zipfile.ZipFile, "testzip", compare)
        store.save(LAST, state_of(7))
        return wrong

    monkeypatch.setattr(zipfile.ZipFile, "testzip", saving)
    state = read_checkpoint(store.folder / LAST)
    assert state["progress"]["step"] == 6 and torch.equal(state["task"]["weight"], state_of(6)["task"]["weight"])
    assert read_checkpoint(store.folder / LAST)["progress"]["step"] == 7
