"""A folder that is deleted in mid-run ends the job with a word, or costs nothing; the same command finishes it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from loading_samples import write_ramp_wav
from small_runs import small_pretraining
from test_shards_write import clocks, contents, made

from avssl.commands.pretrain import pretrain
from avssl.data import catalog, scan
from avssl.data.clips import ClipDataset
from avssl.data.failures import DataError, FailureMonitor
from avssl.data.loader import make_train_loader
from avssl.data.media import MediaInfo
from avssl.data.shards import write
from avssl.data.shards.index import verify
from avssl.tracking import read_rows
from avssl.training.engine import Engine


def test_a_scan_whose_cache_is_deleted_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("AVSSL_CACHE", str(cache))
    for name in "abcd":
        write_ramp_wav(tmp_path / "media" / f"{name}.wav", 1.0)
    probe, looked = scan.probe, []

    def deleting(path: str, **options: object) -> MediaInfo:
        looked.append(path)
        if len(looked) == 3:
            shutil.rmtree(cache)
        return probe(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "probe", deleting)
    scanned = catalog.open_data(str(tmp_path / "media"), workers=0, progress=False)
    again = catalog.open_data(str(tmp_path / "media"), workers=0, progress=False)
    assert scanned.digest == again.digest and scanned.column("has_audio") == [True] * 4 and len(looked) == 4
    assert [path.suffix for path in (cache / "manifests").iterdir()] == [".parquet"]


def test_a_run_whose_data_are_deleted_ends_and_goes_on_with_the_same_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    config, step, looked = small_pretraining(tmp_path / "run", 7, every=2), Engine.step, []

    def deleting(self: Engine, *arguments: Any) -> Any:
        looked.append(self.progress.step)
        if looked == [0, 1, 2]:
            shutil.rmtree(tmp_path / "cache")
        return step(self, *arguments)

    monkeypatch.setattr(Engine, "step", deleting)
    with pytest.raises(DataError, match=r"first cause: .*demo-\w+/.*\.mp4: file not found"):
        pretrain(config)
    assert max(looked) < 6 and pretrain(config)["finished"] and looked.count(2) == 2, "it went on"
    assert pretrain(small_pretraining(tmp_path / "whole", 7, every=2))["finished"]
    assert read_rows(tmp_path / "run" / "metrics.jsonl") == read_rows(tmp_path / "whole" / "metrics.jsonl")


def test_a_training_whose_shards_are_deleted_ends_and_names_them(tmp_path: Path) -> None:
    made(clocks(tmp_path / "media", 12), tmp_path / "out")
    manifest = catalog.open_data(str(tmp_path / "out"), progress=False)
    dataset = ClipDataset(manifest, clip_seconds=0.5, num_frames=2, frame_size=24)
    monitor = FailureMonitor()
    loader = iter(make_train_loader(dataset, 2))
    monitor.update(next(loader))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match=r"first cause: .*/out/train-00000\d\.tar.*: file not found"):
        for _ in range(100):
            batch = next(loader)
            assert all(clip_id in manifest.column("clip_id") for clip_id in batch.clip_ids)
            monitor.update(batch)


@pytest.mark.parametrize("at", ["write_sample", "check_shard", "write_index"])
def test_a_cache_that_is_deleted_while_it_is_made_does_not_count_as_made(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = clocks(tmp_path / "media", 5)
    made(manifest, tmp_path / "whole")
    work, calls = getattr(write, at), []

    def deleting(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == min(3, 5 if at == "write_sample" else 1 if at == "write_index" else 2):
            shutil.rmtree(tmp_path / "out")
        return work(*arguments)

    monkeypatch.setattr(write, at, deleting)
    with pytest.raises((DataError, OSError)) as raised:
        made(manifest, tmp_path / "out")
    assert str(tmp_path / "out") in str(raised.value)
    monkeypatch.setattr(write, at, work)
    made(manifest, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert verify(str(tmp_path / "out"), progress=False) == []
