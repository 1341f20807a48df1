"""Embeddings are in the order of the manifest, averaged over clips, honest about what could not be read, and kept."""

import os

import numpy as np
import pytest
import torch
from torch import nn

import avssl  # noqa: F401
from avssl.data.batch import Batch
from avssl.data.failures import Failure
from avssl.data.manifest import Manifest
from avssl.evaluation.embeddings import (
    ClipScores,
    EmbeddingCache,
    Embeddings,
    coverage,
    embed,
    embed_many,
    media_digest,
    model_digest,
)


def clips(values: torch.Tensor, index: list[int], failures: list[Failure] | None = None) -> Batch:
    """A batch whose audio is ``values``; rows are labelled by their number in one head and not at all in another."""
    size = len(index)
    labels = {"class": torch.tensor([row % 3 for row in index]), "other": torch.full((size,), -1)}
    return Batch(
        audio=values,
        video=None,
        labels=labels,
        index=torch.tensor(index, dtype=torch.int64),
        clip_ids=[f"clip{row}" for row in index],
        start=torch.zeros(size, dtype=torch.float64),
        failures=failures or [],
    )


def test_clips_of_a_row_are_averaged_across_batches_in_manifest_order():
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    batches = [clips(values[:3], [5, 2, 2]), clips(values[3:], [2, 0, 5])]
    result = embed(lambda batch: batch.audio, batches, progress=False)
    expected = torch.stack([values[4], values[1:4].mean(0), values[[0, 5]].mean(0)])
    np.testing.assert_allclose(result.features, expected, atol=1e-6)
    assert result.features.dtype == np.float32
    assert result.index.tolist() == [0, 2, 5]
    assert result.clip_ids == ["clip0", "clip2", "clip5"]
    assert result.labels["class"].tolist() == [0, 2, 2]
    assert result.labels["other"].tolist() == [-1, -1, -1]


def test_normalize_weighs_every_clip_the_same():
    values = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    result = embed(lambda batch: batch.audio, [clips(values, [0, 0])], normalize=True, progress=False)
    np.testing.assert_allclose(result.features, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_no_graph_is_kept_and_half_precision_is_accepted():
    weight = torch.ones(2, 3, requires_grad=True)

    def encode(batch):
        assert torch.is_inference_mode_enabled()
        return (batch.audio @ weight).bfloat16()

    assert embed(encode, [clips(torch.ones(2, 2), [0, 1])], progress=False).features.tolist() == [[2.0] * 3] * 2


def test_two_modalities_from_one_reading():
    reads = []

    def batches():
        reads.append(1)
        yield clips(torch.eye(2), [0, 1])

    result = embed_many(lambda batch: {"audio": batch.audio, "video": -batch.audio}, batches(), progress=False)
    assert len(reads) == 1
    np.testing.assert_array_equal(result["video"].features, -np.eye(2))


def test_failures_are_kept_and_a_batch_of_failures_alone_is_skipped():
    batches = [clips(torch.ones(1, 2), [0]), clips(torch.ones(0, 2), [], [Failure("a.mp4", "no audio stream")])]
    result = embed(lambda batch: batch.audio, batches, progress=False)
    assert len(result) == 1
    assert result.failures == [("a.mp4", "no audio stream")]


def test_all_failed_names_the_first_cause():
    batches = [clips(torch.ones(0, 2), [], [Failure("a.mp4", "no such file"), Failure("b.mp4", "corrupt")])]
    with pytest.raises(ValueError, match=r"2 failures, the first a\.mp4: no such file"):
        embed(lambda batch: batch.audio, batches, progress=False)
    with pytest.raises(ValueError, match="no batches"):
        embed(lambda batch: batch.audio, [], progress=False)


def test_nan_names_the_clip():
    values = torch.ones(3, 2)
    values[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN .* 'clip7'"):
        embed(lambda batch: batch.audio, [clips(values, [3, 7, 9])], progress=False)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected \(2, D\)"):
        embed(lambda batch: batch.audio.sum(1), [clips(torch.ones(2, 2), [0, 1])], progress=False)


def test_save_and_load_is_the_same_and_leaves_no_temporary(tmp_path):
    made = Embeddings(
        np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32),
        ["a", "ä b", "c"],
        {"verb": np.array([0, -1, 2]), "noun": np.array([1, 1, 1])},
        np.array([0, 4, 5]),
        [("x/ü.mp4", "no audio stream")],
    )
    made.save(tmp_path / "deep" / "e.npz")
    read = Embeddings.load(tmp_path / "deep" / "e.npz")
    np.testing.assert_array_equal(read.features, made.features)
    np.testing.assert_array_equal(read.index, made.index)
    assert read.clip_ids == made.clip_ids and read.failures == made.failures
    assert {head: values.tolist() for head, values in read.labels.items()} == {"verb": [0, -1, 2], "noun": [1, 1, 1]}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["e.npz"]


def test_select_by_mask_and_by_index():
    made = Embeddings(np.eye(3, dtype=np.float32), ["a", "b", "c"], {"x": np.arange(3)}, np.arange(3))
    assert made.select([True, False, True]).clip_ids == ["a", "c"]
    assert made.select(np.array([2, 0])).labels["x"].tolist() == [2, 0]


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="clip_ids"):
        Embeddings(np.eye(3, dtype=np.float32), ["a"], {}, np.arange(3))


def test_coverage_counts_reasons_and_refuses_doubles():
    result = coverage(4, 2, [("a", "corrupt"), ("b", "no audio stream"), ("c", "corrupt")])
    assert result == {"expected": 4, "evaluated": 2, "share": 0.5, "reasons": {"corrupt": 2, "no audio stream": 1}}
    assert coverage(0, 0)["share"] == 0.0
    with pytest.raises(ValueError, match="5 clips evaluated of 4"):
        coverage(4, 5)


LABELS = {"verb": ["a", "b", "c"], "tags": ["x", "y"]}


def test_probabilities_of_several_clips_are_averaged_as_references_do_it() -> None:
    """The sum of softmaxes of Auditory SlowFast's TestMeter, and of sigmoids of several labels, in NumPy."""
    logits = np.random.default_rng(0).normal(scale=6, size=(10, 5)).astype(np.float32)
    logits[0, 1] = -90  # one clip that is very sure weighs more in a mean of logits
    clips = ClipScores(LABELS, ["tags"], clips=10)
    found = clips.of_average(clips.to_average(torch.from_numpy(logits)).mean(0, keepdim=True))
    softmax = np.exp(logits[:, :3]) / np.exp(logits[:, :3]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["verb"].softmax(1)[0], softmax.sum(axis=0) / 10, rtol=1e-5)
    np.testing.assert_allclose(found["tags"].sigmoid()[0], (1 / (1 + np.exp(-logits[:, 3:]))).mean(axis=0), rtol=1e-5)
    mean = logits.mean(axis=0)
    assert found["verb"][0].argmax() != mean[:3].argmax()  # the two rules do not even agree on the class
    plain = ClipScores(LABELS, ["tags"], clips=10, average="logits")
    both = plain.of_average(plain.to_average(torch.from_numpy(logits)).mean(0, keepdim=True))
    np.testing.assert_allclose(torch.cat([both["verb"], both["tags"]], dim=1)[0], mean, rtol=1e-5)


def test_a_single_clip_keeps_its_logits_and_a_certain_mean_stays_finite() -> None:
    logits = torch.tensor([[1e3, -1e3, 0.0, 1e3, -1e3]])
    one = ClipScores(LABELS, ["tags"])
    assert torch.equal(torch.cat(list(one.of_average(one.to_average(logits)).values()), dim=1), logits)
    two = ClipScores(LABELS, ["tags"], clips=2)
    scores = two.of_average(two.to_average(logits).float())
    assert all(values.isfinite().all() for values in scores.values())


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
