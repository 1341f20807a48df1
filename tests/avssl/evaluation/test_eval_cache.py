"""What is cached is what was made, and any difference that matters makes another key."""

import os

import numpy as np
import pytest
import torch
from torch import nn

import avssl  # noqa: F401
from avssl.data.manifest import Manifest
from avssl.evaluation.embeddings import EmbeddingCache, Embeddings, media_digest, model_digest


def made(value: float) -> dict[str, Embeddings]:
    tags = np.array([[0, 1], [-1, -1]], np.float32)
    labels = {"x": np.array([1, -1]), "tags": tags}
    one = Embeddings(np.full((2, 3), value, np.float32), ["a", "b"], labels, np.arange(2), [("c.wav", "corrupt")])
    return {"audio": one, "video": Embeddings(-one.features, ["a", "b"], labels, np.arange(2))}


def test_the_second_time_nothing_is_made_and_all_is_the_same(tmp_path):
    cache, calls = EmbeddingCache(tmp_path / "cache"), []
    for value in (1.0, 2.0):
        got = cache.get({"model": "m"}, ("audio", "video"), lambda value=value: calls.append(value) or made(value))
        assert (got["audio"].features == 1).all() and (got["video"].features == -1).all()
    assert calls == [1.0]
    assert got["audio"].failures == [("c.wav", "corrupt")] and got["audio"].clip_ids == ["a", "b"]
    np.testing.assert_array_equal(got["audio"].labels["tags"], made(0)["audio"].labels["tags"])
    assert got["audio"].labels["x"].dtype == np.int64
    other = cache.get({"model": "n"}, ("audio", "video"), lambda: made(3.0))
    assert (other["audio"].features == 3).all()


def test_no_folder_keeps_nothing():
    calls = []
    for _ in range(2):
        EmbeddingCache(None).get({}, ("audio",), lambda: calls.append(1) or made(1.0))
    assert len(calls) == 2


@pytest.mark.parametrize("harm", ["cut", "emptied", "removed"])
def test_a_broken_file_is_made_again(harm, tmp_path, caplog):
    cache = EmbeddingCache(tmp_path)
    cache.get({}, ("audio", "video"), lambda: made(1.0))
    file = next(tmp_path.glob("*-audio.npz"))
    if harm == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100] if harm == "cut" else b"")
    assert (cache.get({}, ("audio", "video"), lambda: made(2.0))["audio"].features == 2).all()
    assert (cache.get({}, ("audio", "video"), lambda: made(3.0))["audio"].features == 2).all()
    assert ("computing them again" in caplog.text) == (harm != "removed")


def test_interrupted_making_leaves_nothing(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path).get({}, ("audio",), stop)
    assert not list(tmp_path.iterdir())


def test_model_digest_sees_weights_buffers_names_and_settings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = model_digest(model, settings={"mean": 0.0})
    assert before == model_digest(model, settings={"mean": 0.0})
    seen = {before, model_digest(model, settings={"mean": 0.1}), model_digest(model.double(), settings={"mean": 0.0})}
    model.float()[1].running_mean[0] = 1
    seen.add(model_digest(model, settings={"mean": 0.0}))
    model[0].weight.data[0, 0] += 1e-6
    seen.add(model_digest(model, settings={"mean": 0.0}))
    assert len(seen) == 5


def test_media_digest_sees_rows_labels_and_changed_files(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"0123")

    def digest(label: int = 0, **row: object) -> str:
        rows = [{"clip_id": "a", "path": "a.wav", "label.x": label} | row]
        return media_digest(Manifest.from_rows(rows, tmp_path, {"x": ["u", "v"]}))

    first = digest()
    assert first == digest()
    seen = {first, digest(label=1), digest(start=0.0, end=1.0)}
    os.utime(tmp_path / "a.wav", (1, 1))
    seen.add(digest())
    (tmp_path / "a.wav").unlink()
    seen.add(digest())
    assert len(seen) == 5
