"""The cache: its clips are those of the originals; what is broken is told; nothing half-written, nothing silent."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from shard_samples import make_data

from avssl.commands.extract_audio import extract_all
from avssl.commands.prepare import PrepareOptions, prepare
from avssl.config import DataConfig
from avssl.data.catalog import find_entry, open_data
from avssl.data.clips import ClipDataset, Item
from avssl.data.failures import DataError
from avssl.data.loader import make_train_loader
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.media import MediaError, read_audio
from avssl.data.shards import encode
from avssl.data.shards.encode import Settings
from avssl.data.shards.index import about_of, verify
from avssl.data.shards.sample import open_source
from avssl.data.shards.store import Address, Store
from avssl.data.shards.write import plan, write_cache
from avssl.data.spans import frame_times
from avssl.data.splits import open_splits
from avssl.limits import Limits

SETTINGS = Settings(short_side=32, quality=95)
ENTRY = {"clip_seconds": 1.5, "eval_clips": 2, "head": "number"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_data(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def folder(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "cache"
    write_cache(data, str(output), SETTINGS, entry=ENTRY, name="small", samples_per_shard=3, workers=0, progress=False)
    return output


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy elsewhere, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def dataset(manifest: Manifest, **options: object) -> ClipDataset:
    return ClipDataset(manifest, **{"clip_seconds": 1.5, "num_frames": 6, "frame_size": 32} | options)  # type: ignore[arg-type]


def usable(manifest: Manifest) -> list[int]:
    return [row for row, reason in enumerate(manifest.reasons(audio=True, video=True)) if not reason]


def assert_same(one: Item, other: Item, sound: float = 1e-4) -> None:
    assert len(one.clips) == len(other.clips) > 0, (one.failures, other.failures)
    for a, b in zip(one.clips, other.clips, strict=True):
        assert (a.clip_id, a.start, a.labels, a.index) == (b.clip_id, b.start, b.labels, b.index)
        assert a.audio_fraction == pytest.approx(b.audio_fraction, abs=1e-3)
        assert np.abs(a.audio - b.audio).max() < sound
        if a.video is not None:
            assert a.video.shape == b.video.shape and np.abs(a.video.astype(int) - b.video).mean() < 4


@pytest.mark.parametrize("mode", ["random", "center", "uniform"])
def test_clips_are_those_of_the_originals(data: Manifest, folder: Path, mode: str) -> None:
    cached = open_data(str(folder))
    count = 1 if mode == "center" else 3
    one, other = (dataset(m, mode=mode, clips_per_item=count, seed=3) for m in (data, cached))
    rows = usable(cached)
    assert [data.row(row).clip_id for row in rows] == ["clock", "part", "same", "short", "a.b/c", "b", "late"]
    for row in rows:
        # 1e-2: an AAC decoder fills noisy bands with random numbers.
        assert_same(one[(5, row)], other[(5, row)], sound=1e-2 if row in (4, 6) else 1e-4)


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_sound_is_the_originals_to_the_sample_at_any_rate(data: Manifest, folder: Path, rate: int) -> None:
    row, cached = 5, open_data(str(folder))  # a segment from 0.31 s on, stored at 16 kHz, of 44.1 kHz
    for start, seconds in ((0.31, 1.0), (1.2345, 0.5), (2.90001, 1.0)):
        with open_source(cached.row(row).path) as sample:
            got = sample.audio(start, seconds, rate)
        expected = read_audio(data.row(row).path, start, seconds, rate)
        assert got.waveform.shape == expected.waveform.shape and got.valid == pytest.approx(expected.valid, abs=1e-3)
        inner = slice(rate // 50, -rate // 50)  # a segment has no neighbours that a filter could see
        # The sound ends below 3 kHz, so that 16 kHz keep all of it.
        assert np.abs(got.waveform[inner] - expected.waveform[inner]).max() < 2e-3


def test_sound_alone_and_loud_sound_are_kept(data: Manifest, folder: Path, tmp_path: Path) -> None:
    cached = open_data(str(folder))
    options = {"modalities": ("audio",), "mode": "center"}
    assert_same(dataset(data, **options)[(0, 7)], dataset(cached, **options)[(0, 7)])
    assert cached.row(7).has_audio and not cached.row(7).has_video
    from media_factory import tone, write_media

    write_media(tmp_path / "loud.mkv", waveform=2.5 * tone(2.0, 16000), audio_codec="pcm_f32le", size=(32, 32))
    from avssl.data.scan import scan

    loud = scan(Manifest.from_rows([{"clip_id": "a", "path": "loud.mkv"}], tmp_path), workers=0, progress=False)
    write_cache(loud, str(tmp_path / "out"), SETTINGS, workers=0, progress=False)
    assert_same(dataset(loud, mode="center")[(0, 0)], dataset(open_data(str(tmp_path / "out")), mode="center")[(0, 0)])


def test_a_stream_that_is_not_kept_is_not_said_to_be_absent(data: Manifest, tmp_path: Path) -> None:
    settings = replace(SETTINGS, modalities=("audio",))
    write_cache(data, str(tmp_path / "sound"), settings, workers=0, progress=False)
    cached = open_data(str(tmp_path / "sound"))
    assert cached.reasons(audio=True)[0] == "" and cached.reasons(video=True)[0] == "not kept in the cache"
    assert cached.reasons(video=True)[7] == "no video stream"  # nor in the original


def test_labels_splits_and_coverage_are_the_originals(data: Manifest, folder: Path) -> None:
    cached = open_data(str(folder))
    assert cached.heads == data.heads and cached.multilabel == data.multilabel
    for name in ("clip_id", "split", "start", "end", "duration", "label.number", "label.kind"):
        assert cached.column(name) == data.column(name), name
    assert cached.column("source") == data.column("path")
    entry = find_entry(str(folder))
    assert (entry.clip_seconds, entry.eval_clips, entry.head) == (1.5, 2, "number")
    splits = open_splits(DataConfig(name=str(folder), frame_size=32), modalities=("audio", "video"), labelled=True)
    assert splits.train.column("clip_id") == ["clock", "part", "same", "a.b/c", "b", "late"]
    assert splits.test is not None and splits.test.column("clip_id") == ["short"] and splits.protocol.seconds == 1.5
    assert splits.coverage["test"]["expected"] == 4 and sum(splits.coverage["test"]["reasons"].values()) == 3


def test_broken_media_are_told_and_never_replaced(data: Manifest, folder: Path) -> None:
    cached = open_data(str(folder))
    reasons = dict(zip(cached.column("clip_id"), cached.reasons(audio=True, video=True), strict=True))
    assert reasons["text"] == "not a media file" and reasons["sound"] == "no video stream"
    assert reasons["broken"] and reasons["broken"] == cached.column("error")[8]
    about = json.loads((folder / "cache.json").read_text())
    assert about["samples"] == 7 and about["rows"] == 10 and about["complete"]
    assert sum(about["reasons"].values()) == 1 and about["unusable"] == {"not a media file": 1}


def test_one_span_is_stored_once_and_shards_hold_one_split(data: Manifest, folder: Path) -> None:
    paths = open_data(str(folder)).column("path")
    assert paths[1] == paths[2] and len({*paths}) == 9
    shards = plan(data, 3)
    assert [shard.name for shard in shards] == ["test-000000.tar", "train-000000.tar", "train-000001.tar"]
    assert all({data.row(r).split for s in shard.spans.values() for r in s.rows} == {shard.name.split("-")[0]}
               for shard in shards)  # fmt: skip
    assert plan(data, 3) == shards, "the plan is the same every time: a resumed run depends on it"


def test_a_rate_cap_keeps_frames_that_are_at_most_so_old(data: Manifest, tmp_path: Path) -> None:
    write_cache(data.take([0]), str(tmp_path / "out"), replace(SETTINGS, fps=4.0), workers=0, progress=False)
    cached = open_data(str(tmp_path / "out"))
    with open_source(cached.row(0).path) as sample:
        assert sample.about["frames"]["starts"] == pytest.approx(np.arange(32) / 4)  # type: ignore[union-attr]
        times = np.array([0.2, 1.0, 3.3, 7.9])
        grey = sample.frames(times).mean(axis=(1, 2, 3))
    assert np.abs(grey - (20 + 20 * np.floor(times * 4) / 4)).max() < 3  # the clock video's brightness tells the time


@pytest.mark.parametrize("fps", [None, 4.0])
def test_long_files_are_read_in_pieces_without_a_seam(
    data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fps: float | None
) -> None:
    settings = replace(SETTINGS, fps=fps, modalities=("video",))
    write_cache(data.take([0]), str(tmp_path / "whole"), settings, workers=0, progress=False)
    monkeypatch.setattr(encode, "WINDOW", 0.77)
    write_cache(data.take([0]), str(tmp_path / "pieces"), settings, workers=0, progress=False)
    whole, pieces = ((tmp_path / name / "train-000000.tar").read_bytes() for name in ("whole", "pieces"))
    assert whole == pieces


def test_training_by_shards_is_a_setting(folder: Path) -> None:
    config = DataConfig(name=str(folder), frame_size=32, num_frames=2, num_workers=0, sampling="shards", shard_buffer=1)
    splits = open_splits(config, modalities=("audio", "video"), labelled=True)
    loaders = Loaders(config, splits.protocol, ("audio", "video"), 16000, 3, seed=1)
    loader = loaders.train(splits.train, Fabric(accelerator="cpu", devices=1))
    shards = {row: path.partition("#")[0] for row, path in enumerate(splits.train.column("path"))}
    for batch in islice(loader, 4):
        assert batch.size == 3 and len({shards[row] for row in batch.index.tolist()}) == 1


def test_a_cache_may_be_moved_and_read_by_a_yaml(folder: Path, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"dataset: cache\nroot: {copied.name}\nclip_seconds: 1.0\n")
    one, other = open_data(str(folder)), open_data(str(tmp_path / "mine.yaml"))
    assert other.digest == one.digest and other.root == copied
    assert find_entry(str(tmp_path / "mine.yaml")).clip_seconds == 1.0
    assert find_entry(str(tmp_path / "mine.yaml")).eval_clips == 2
    assert_same(dataset(one)[(0, 0)], dataset(other)[(0, 0)], sound=1e-9)


def test_larger_frames_than_the_cache_has_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"frame_size: 40 is more than the 32 pixels.*--short_side 40"):
        open_splits(DataConfig(name=str(folder), frame_size=40), modalities=("audio", "video"), labelled=True)
    with open_source(open_data(str(folder)).row(0).path) as sample, pytest.raises(MediaError, match="too small"):
        sample.frames([1.0], size=40)
    open_splits(DataConfig(name=str(folder), frame_size=40), modalities=("audio",), labelled=True)


def test_tools_that_need_the_originals_say_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"avssl cache --verify"):
        prepare(PrepareOptions(str(folder), tmp_path / "a.parquet"), tell=print)
    with pytest.raises(DataError, match="extract that of the originals"):
        extract_all(open_data(str(folder)), tmp_path / "sound")


def test_webdataset_reads_the_shards(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset([str(folder / "train-000000.tar")], shardshuffle=False))
    assert len(samples) == 3 and {"json", "mjpeg", "wav"} <= samples[0].keys()
    about = json.loads(samples[0]["json"])
    assert len(samples[0]["mjpeg"]) == sum(about["frames"]["bytes"])
    assert len(samples[0]["wav"]) == 44 + 2 * about["sound"]["samples"]
    assert about["clips"][0]["labels"]["number"] in ("zero", "one", "two")
    with tarfile.open(folder / "test-000000.tar") as tar:
        extensions = sorted(name.split(".")[1] for name in tar.getnames())
    assert extensions == ["json", "json", "mjpeg", "wav", "wav"], "one with pictures, one with sound alone"


def places(manifest: Manifest, row: int) -> Iterator[tuple[str, int]]:
    """A byte of the sample's header, of its pictures, and of its sound."""
    address = Address.parse(manifest.column("path")[row])
    with open_source(manifest.row(row).path) as sample:
        pictures = sum(sample.about["frames"]["bytes"])  # type: ignore[union-attr]
    yield "header", address.offset + address.after() + 20
    yield "frame", address.offset + address.after(address.header) + pictures // 2
    yield "sound", address.offset + address.after(address.header, pictures) + 44 + 32000


@pytest.mark.parametrize("part", ["header", "frame", "sound"])
def test_a_flipped_bit_is_a_counted_failure_and_found_by_a_check(copied: Path, part: str) -> None:
    manifest = open_data(str(copied))
    row = 0
    shard = copied / Address.parse(manifest.column("path")[row]).shard
    place = dict(places(manifest, row))[part]
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    assert [line.partition(":")[0] for line in verify(str(copied), progress=False)] == [shard.name]
    # All frames of the file are wanted: whichever the byte belongs to.
    options = {"clip_seconds": 8.0, "num_frames": 160}
    item = dataset(manifest, mode="center", **options)[(0, row)]
    assert not item.clips and [failure.reason for failure in item.failures] == ["corrupt sample"]
    replaced = dataset(manifest.take(usable(manifest)), mode="random", **options)[(0, row)]
    assert replaced.clips and replaced.failures[0].reason == "corrupt sample"


def test_a_flipped_bit_anywhere_in_a_shard_gives_no_other_clip(copied: Path) -> None:
    manifest = open_data(str(copied))
    row = 0
    shard = copied / Address.parse(manifest.column("path")[row]).shard
    whole = shard.read_bytes()
    read = dataset(manifest, mode="center", clip_seconds=8.0, num_frames=20)
    (expected,), failed = read[(0, row)].clips, 0
    for bit in np.random.default_rng(4).integers(8 * len(whole), size=100).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        assert [line.partition(":")[0] for line in verify(str(copied), progress=False)] == [shard.name]
        item = read[(0, row)]
        failed += len(item.failures)
        for clip in item.clips:  # in another sample, or in frames that it does not look at
            assert np.array_equal(clip.audio, expected.audio) and np.array_equal(clip.video, expected.video)
    assert failed > 5


@pytest.mark.parametrize("path", ["/etc/hostname", "other.wav", "/x.tar#0+1024,100,00000000"])
def test_an_index_that_names_other_files_is_refused(copied: Path, path: str) -> None:
    manifest = open_data(str(copied))
    paths = [path, *manifest.column("path")[1:]]
    forged = Manifest(manifest.with_columns({"path": paths}).table, copied, manifest.heads, allow_absolute=True)
    forged.save(copied / "index.parquet", ENTRY)
    with pytest.raises(DataError, match=r"its index names .*, which lies in none of its shards"):
        open_data(str(copied))


def test_a_flipped_bit_in_what_a_cache_says_of_itself_is_refused(copied: Path) -> None:
    about = copied / "cache.json"
    whole, expected = about.read_bytes(), about_of(Store(str(copied)))
    refused = 0
    for bit in np.random.default_rng(2).integers(8 * len(whole), size=300).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        about.write_bytes(data)
        try:
            found = about_of(Store(str(copied)))
        except DataError as error:
            assert "cache.json" in str(error)
            refused += 1
        else:
            assert {name: found.get(name) for name in expected} == expected
    assert refused > 250
    about.write_bytes(whole.replace(b'"short_side": 32', b'"short_side": 33'))
    with pytest.raises(DataError, match=r'cache\.json: is not as it was written.*take its entry "sha256" out'):
        open_data(str(copied))
    about.write_text(json.dumps(expected))  # as earlier versions wrote it
    assert len(open_data(str(copied)))


@pytest.mark.parametrize("own_limit", [True, False])
def test_a_picture_that_is_too_large_is_a_counted_failure(
    own_limit: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    limited,
) -> None:
    manifest = open_data(str(folder))
    row = usable(manifest)[0]
    assert dataset(manifest, mode="center")[(0, row)].clips
    if own_limit:
        limited(Limits(max_pixels=100))
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert {failure.reason for failure in dataset(manifest, mode="center")[(0, row)].failures} == {"picture too large"}


@pytest.mark.parametrize("modalities", [("audio",), ("video",)])
def test_a_cached_clip_that_takes_too_much_memory_is_a_counted_failure(folder: Path, modalities, limited) -> None:
    manifest = open_data(str(folder))
    row = usable(manifest)[0]
    limited(Limits(max_clip_bytes=10_000))
    item = dataset(manifest, mode="center", modalities=modalities)[(0, row)]
    assert {failure.reason for failure in item.failures} == {"clip too large"} and not item.clips


def test_shards_that_are_cut_off_or_gone_are_counted_failures(copied: Path) -> None:
    manifest = open_data(str(copied))
    assert verify(str(copied), progress=False) == []
    name = Address.parse(manifest.column("path")[0]).shard
    whole = (copied / name).read_bytes()
    last = max((row for row in usable(manifest) if manifest.column("path")[row].startswith(name)),
               key=lambda row: Address.parse(manifest.column("path")[row]).offset)  # fmt: skip
    (copied / name).write_bytes(whole[: len(whole) - 6000])
    short = dataset(manifest, mode="center", clip_seconds=8.0, num_frames=100)[(0, last)]
    assert [failure.reason for failure in short.failures] == ["corrupt sample"] and not short.clips
    assert "bytes, not" in verify(str(copied), progress=False)[0]
    elsewhere = copied.with_name("other")
    shutil.copytree(copied, elsewhere)
    (elsewhere / name).unlink()
    moved = open_data(str(elsewhere))
    assert [f.reason for f in dataset(moved, mode="center")[(0, 0)].failures] == ["file not found"]
    assert "cannot be read" in verify(str(elsewhere), progress=False)[0]


@pytest.mark.parametrize("times", [[1.0], [0.5, 1.5, 1.5]])
def test_smaller_frames_are_scaled_as_pillow_scales_them(folder: Path, times: list[float]) -> None:
    with open_source(open_data(str(folder)).row(0).path) as sample:
        whole, scaled = sample.frames(times), sample.frames(times, size=20)
    height, width = scaled.shape[1:3]
    expected = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in whole]
    assert min(height, width) == 20 < min(whole.shape[1:3])
    assert np.abs(scaled.astype(int) - np.stack([np.asarray(frame, dtype=int) for frame in expected])).max() <= 2


def test_frames_asked_for_are_all_that_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = open_data(str(folder)).row(0)
    with open_source(row.path) as sample:
        read: list[int] = []
        original = sample.store.read  # type: ignore[union-attr]
        monkeypatch.setattr(sample.store, "read", lambda *args: read.append(args[2]) or original(*args))  # type: ignore[union-attr]
        span = dataset(open_data(str(folder)), mode="center").spans(row, np.random.default_rng(0))[0]
        sample.frames(frame_times(span, 4), 32)
        sample.audio(span.start, span.available)
        assert len(read) == 1 + 4 + 1 and sum(read) < sample.address.size / 3  # type: ignore[union-attr]


def test_loading_resumes_in_mid_epoch_and_does_not_depend_on_workers(folder: Path) -> None:
    manifest = open_data(str(folder))
    clips = dataset(manifest.take(usable(manifest)), seed=2)
    alone = list(islice(make_train_loader(clips, 2, seed=1), 6))
    resumed = list(islice(make_train_loader(clips, 2, seed=1, start_step=4, num_workers=1), 2))
    for a, b in zip(alone[4:], resumed, strict=True):
        assert a.clip_ids == b.clip_ids and torch.equal(a.audio, b.audio) and torch.equal(a.video, b.video)  # type: ignore[arg-type]
