"""Making a cache: killed and continued, in processes, in an object store; what must not be overwritten is not."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from loading_samples import write_clock_video
from shard_samples import make_data

from avssl.commands.cache import cache
from avssl.config import CacheConfig, SourceConfig
from avssl.data.boxes import read_boxes
from avssl.data.catalog import find_entry, open_data
from avssl.data.clips import ClipDataset
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.scan import scan
from avssl.data.shards import store, write
from avssl.data.shards.encode import Settings
from avssl.data.shards.index import verify
from avssl.data.shards.write import write_cache
from avssl.data.strata import row_groups
from avssl.locks import HeldError

SETTINGS = Settings(short_side=32)


def clocks(root: Path, count: int) -> Manifest:
    for k in range(count):
        write_clock_video(root / f"{k}.mp4", seconds=1.0 + 0.1 * k)
    rows = [{"clip_id": f"{k}", "path": f"{k}.mp4", "split": "train"} for k in range(count)]
    return scan(Manifest.from_rows(rows, root), workers=0, progress=False)


def made(manifest: Manifest, output: Path | str, **options: object) -> write.Report:
    arguments = {"samples_per_shard": 2, "workers": 0, "progress": False, "name": "clocks"} | options
    return write_cache(manifest, str(output), SETTINGS, **arguments)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the index, in which the root differs."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".json")}


KILLED = """
import sys, time
import avssl
from avssl.data.manifest import Manifest
from avssl.data.shards import write
from avssl.data.shards.encode import Settings

make = write.write_sample
def slowly(job):
    time.sleep(0.15)
    return make(job)

write.write_sample = slowly
manifest = Manifest.load(sys.argv[1])
write.write_cache(manifest, sys.argv[2], Settings(short_side=32), samples_per_shard=2, workers=0, name="clocks")
"""


def test_a_killed_run_continues_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 7)
    made(manifest, tmp_path / "whole")
    manifest.save(tmp_path / "clocks.parquet")
    output = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "clocks.parquet"), str(output)]) as child:
        while not (output / "train-000001.json").is_file():
            assert child.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    names = set(os.listdir(output))
    assert {"train-000000.tar", "train-000001.tar"} <= names and "train-000003.tar" not in names
    assert "index.parquet" not in names and not json.loads((output / "cache.json").read_text())["complete"]
    with pytest.raises(DataError, match="not finished"):
        open_data(str(output))
    finished = (output / "train-000000.tar").stat()
    report = made(manifest, output)
    assert report.kept >= 2 and report.samples == 7
    assert (output / "train-000000.tar").stat().st_mtime_ns == finished.st_mtime_ns, "a finished shard was made anew"
    assert contents(output) == contents(tmp_path / "whole")
    assert not (output / ".parts").exists() and verify(str(output), progress=False) == []


def test_samples_of_an_unfinished_shard_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = clocks(tmp_path / "media", 5)
    original, keys = write.write_sample, []

    def stopping(job: write.Job) -> write.EncodingResult:
        if len(keys) == 3:
            raise KeyboardInterrupt
        keys.append(job.key)
        return original(job)

    monkeypatch.setattr(write, "write_sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(manifest, tmp_path / "out")
    encoded: list[str] = []
    from avssl.data.shards import encode

    plain = encode.encode
    monkeypatch.setattr(encode, "encode", lambda job: encoded.append(job.key) or plain(job))
    monkeypatch.setattr(write, "write_sample", original)
    made(manifest, tmp_path / "out")
    assert len(encoded) == 2 and not set(encoded) & set(keys)


def test_a_finished_shard_that_was_changed_is_made_again(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 4)
    made(manifest, tmp_path / "out")
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert made(manifest, tmp_path / "out").kept == 1
    assert contents(tmp_path / "out") == before


def test_a_flipped_bit_in_the_record_of_a_shard_is_seen(tmp_path: Path, caplog) -> None:
    """Where a cache goes on by it, its samples' places and lengths go into the index."""
    manifest = clocks(tmp_path / "media", 4)
    made(manifest, tmp_path / "out")
    before = contents(tmp_path / "out")
    record = tmp_path / "out" / "train-000001.json"
    values = json.loads(record.read_text())
    next(iter(values["entries"].values()))["facts"]["width"] += 1
    record.write_text(json.dumps(values))
    assert made(manifest, tmp_path / "out").kept == 1 and contents(tmp_path / "out") == before
    assert "train-000001.json: is not as it was written" in caplog.text


def test_processes_make_the_same_cache_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 4)
    made(manifest, tmp_path / "one")
    made(manifest, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert made(manifest, tmp_path / "two").kept == 2


def test_a_cache_keeps_where_in_the_picture_what_sounds_is(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 2).with_columns({"box": ["0.1 0.2 0.5 0.6", None]})
    made(manifest, tmp_path / "out")
    assert read_boxes(open_data(str(tmp_path / "out"))) == read_boxes(manifest) != [None, None]


def test_a_protocol_that_a_yaml_changes_loses_its_name_also_of_a_cache(tmp_path: Path) -> None:
    made(clocks(tmp_path / "media", 2), tmp_path / "out", entry=find_entry("epic-kitchens").stated)
    yaml = tmp_path / "mine.yaml"
    for line, name in (("eval_clips: 10", "Auditory SlowFast"), ("eval_clips: 1", ""), ("eval_average: logits", "")):
        yaml.write_text(f"dataset: cache\noptions: {{location: {tmp_path / 'out'}}}\n{line}\n")
        assert find_entry(str(yaml)).protocol == name


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 2)
    made(manifest, tmp_path / "out")
    with pytest.raises(DataError, match=r"other settings.*choose another --output"):
        write_cache(manifest, str(tmp_path / "out"), Settings(short_side=24), samples_per_shard=2, workers=0)
    with pytest.raises(DataError, match="other data"):
        made(manifest.take([0]), tmp_path / "out")
    with pytest.raises(DataError, match="holds other files"):
        made(manifest, tmp_path / "media")
    with pytest.raises(DataError, match="holds no cache"):
        verify(str(tmp_path / "media"))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 2).with_columns({"file_bytes": [None] * 2})  # as earlier versions wrote them
    for k in range(2):
        (tmp_path / "media" / f"{k}.mp4").write_bytes(b"no media any more")
    with pytest.raises(DataError, match=r"nothing could be cached; the first: .*not a media file"):
        made(manifest, tmp_path / "out")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    name = f"memory://bucket-{tmp_path.name}/small"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def test_an_object_store_gives_the_clips_of_a_folder(tmp_path: Path, bucket: str) -> None:
    manifest = make_data(tmp_path / "media")
    entry = {"clip_seconds": 1.5, "eval_clips": 2, "head": "kind"}
    for output in (str(tmp_path / "local"), bucket):
        made(manifest, output, entry=entry)
    local, remote = open_data(str(tmp_path / "local")), open_data(bucket)
    assert remote.digest == local.digest
    assert (find_entry(bucket).name, find_entry(bucket).head) == ("small", "kind")
    for row in (0, 1, 4):
        one, other = (
            ClipDataset(m, clip_seconds=1.5, num_frames=4, frame_size=32)[(1, row)].clips[0] for m in (local, remote)
        )
        assert (one.audio == other.audio).all() and (one.video == other.video).all() and one.start == other.start
    assert verify(bucket, progress=False) == []
    memory = fsspec.filesystem("memory")
    shard = next(name for name in memory.ls(bucket, detail=False) if name.endswith(".tar"))
    data = bytearray(memory.cat_file(shard))
    data[len(data) // 2] ^= 1
    memory.pipe_file(shard, bytes(data))
    assert len(verify(bucket, progress=False)) == 1
    assert made(manifest, bucket, entry=entry).kept == 5, "its finished shards are found there, too"


def test_the_index_at_a_url_is_read_anew_when_it_has_changed(tmp_path: Path, bucket: str) -> None:
    made(clocks(tmp_path / "one", 2), bucket)
    assert len(open_data(bucket)) == 2
    fsspec.filesystem("memory").rm(bucket, recursive=True)
    made(clocks(tmp_path / "two", 3), bucket)
    assert len(open_data(bucket)) == 3
    fsspec.filesystem("memory").rm(bucket, recursive=True)
    with pytest.raises(DataError, match="holds no cache"):
        open_data(bucket)
    fsspec.filesystem("memory").pipe_file(bucket + "/x", b"")
    with pytest.raises(DataError, match="nosuch"):
        open_data("nosuch://bucket/cache")


def test_a_password_in_a_url_is_used_and_written_nowhere(tmp_path: Path, bucket: str, caplog) -> None:
    secret = bucket.replace("://", "://key:SECRET@")  # which is the bucket's name here: without it there is no cache
    caplog.set_level("INFO")
    manifest = clocks(tmp_path / "media", 2)
    made(manifest, secret)
    remote = open_data(secret)
    assert len(ClipDataset(remote, clip_seconds=0.5, num_frames=2, frame_size=32)[(1, 0)].clips) == 1
    assert json.loads((remote.root / "location.json").read_text())["location"] == bucket
    assert verify(secret, progress=False) == []
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"SECRET" in path.read_bytes()]
    assert "SECRET" not in caplog.text and bucket in caplog.text
    fsspec.filesystem("memory").rm(secret, recursive=True)
    fsspec.filesystem("memory").pipe_file(bucket + "/x", b"")


def test_the_tool_caches_a_folder_and_checks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    for name in ("train/dog/1.mp4", "test/cat/2.mp4"):
        write_clock_video(tmp_path / "media" / name, seconds=1.0)
    output = str(tmp_path / "out")
    config = CacheConfig(output, SourceConfig(str(tmp_path / "media")), short_side=32, workers=0)
    result = cache(config)
    assert result["samples"] == 2 and not result["failures"]
    assert open_data(output).column("split") == ["test", "train"]
    assert cache(CacheConfig(output, verify=True)) == {"wrong": []}
    shard = tmp_path / "out" / "test-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"1 shards are not what was written.*test-000000\.tar: SHA-256"):
        cache(CacheConfig(output, verify=True))
    with pytest.raises(DataError, match="is a cache already"):
        cache(CacheConfig(str(tmp_path / "again"), SourceConfig(output)))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"short_side": 0}, "short_side"),
        ({"fps": 0.0}, "fps"),
        ({"fps": 1e9}, "fps"),
        ({"quality": 100}, "quality"),
        ({"modalities": ()}, "modalities"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Settings(**options)


def test_negative_workers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    with pytest.raises(ValueError, match="workers: must be at least 0, got -1"):
        cache(CacheConfig(str(tmp_path / "out"), SourceConfig(str(tmp_path / "media")), workers=-1))
    assert not (tmp_path / "out").exists()


def test_threads_share_a_store_whose_files_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread

    def slowly(*arguments: int) -> bytes:
        time.sleep(1e-4)  # time enough for others
        return pread(*arguments)

    monkeypatch.setattr(store, "OPEN_FILES", 2)
    monkeypatch.setattr(os, "pread", slowly)
    for number in range(8):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 4096)
    place = store.Store(str(tmp_path))

    def read(step: int) -> bool:
        number = step * 5 % 8
        return place.read(f"{number}.tar", 100, 50) == bytes([number]) * 50

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_a_second_cache_into_the_same_folder_is_refused_while_one_is_written(tmp_path: Path, monkeypatch) -> None:
    manifest = clocks(tmp_path / "media", 3)
    finish, refused = write.finish_shard, []

    def with_a_rival(*args: object) -> dict[str, object]:
        if not refused:
            with pytest.raises(HeldError, match=r"cache .*is being written by") as error:
                made(manifest, tmp_path / "cache")
            refused.append(error)
        return finish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "finish_shard", with_a_rival)
    assert made(manifest, tmp_path / "cache").samples == 3
    assert refused and not verify(str(tmp_path / "cache"), progress=False)


def test_a_shard_that_does_not_read_back_as_written_ends_the_run_and_is_made_again(tmp_path: Path, monkeypatch) -> None:
    manifest, put = clocks(tmp_path / "media", 3), store.Store.put

    def torn(self: store.Store, file: Path, name: str) -> None:
        put(self, file, name)
        if name == "train-000001.tar":
            assert self.local is not None
            os.truncate(self.local / name, 700)

    monkeypatch.setattr(store.Store, "put", torn)
    with pytest.raises(OSError, match="has 700 bytes"):
        made(manifest, tmp_path / "cache")
    monkeypatch.setattr(store.Store, "put", put)
    assert made(manifest, tmp_path / "cache").samples == 3
    assert not verify(str(tmp_path / "cache"), progress=False)


def test_a_column_source_of_the_data_is_kept_and_keeps_clips_together(tmp_path: Path) -> None:
    manifest = clocks(tmp_path, 4).with_columns({"source": ["film", "film", "other", "third"]})
    made(manifest, tmp_path / "cache")
    cached = open_data(str(tmp_path / "cache"))
    assert cached.column("source") == ["film", "film", "other", "third"]
    assert row_groups(cached)[0].tolist() == row_groups(manifest)[0].tolist() == [0, 0, 1, 2]
    assert cached.files().tolist() == manifest.files().tolist() == [0, 1, 2, 3]
