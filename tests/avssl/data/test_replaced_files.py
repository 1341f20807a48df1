"""A media file that another one replaces in mid-run is noticed: no clip of it goes under the old one's label."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loading_samples import write_ramp_wav
from test_shards_write import clocks, made

from avssl.data import clips
from avssl.data.clips import ClipDataset
from avssl.data.failures import DataError, FailureMonitor
from avssl.data.file_stats import CHANGED
from avssl.data.loader import make_train_loader
from avssl.data.manifest import Manifest
from avssl.data.scan import scan
from avssl.data.shards import write
from avssl.data.shards.index import verify


def scanned(root: Path, count: int = 6) -> Manifest:
    for k in range(count):
        write_ramp_wav(root / f"{k}.wav", 2.0)
    return scan(Manifest.from_rows([{"clip_id": f"{k}", "path": f"{k}.wav"} for k in range(count)], root), workers=0)


def by_another(path: Path) -> None:
    """Puts noise of the same length and size in its place, as a download does: by renaming."""
    header, size = path.read_bytes()[:44], path.stat().st_size
    beside = path.with_suffix(".new")
    beside.write_bytes(header + np.random.default_rng(0).bytes(size - 44))
    os.replace(beside, path)


def by_a_shorter(path: Path) -> None:
    write_ramp_wav(path, 0.5)


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"x" * 100)


REPLACED: dict[str, Callable[[Path], None]] = {"another": by_another, "shorter": by_a_shorter, "in place": in_place}


@pytest.fixture(params=REPLACED)
def replace(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return REPLACED[request.param]


def test_a_replaced_file_gives_no_clip_and_is_told(tmp_path: Path, replace: Callable[[Path], None], caplog) -> None:
    dataset = ClipDataset(scanned(tmp_path), modalities=("audio",), clip_seconds=0.5, seed=1)
    loader = iter(make_train_loader(dataset, 2))
    assert not next(loader).failures
    replace(tmp_path / "3.wav")
    monitor = FailureMonitor(max_share=0.9)
    seen: list[str] = []
    for _ in range(12):
        batch = next(loader)
        monitor.update(batch)
        seen += batch.clip_ids
    assert "3" not in seen and len(seen) == 24, "another clip takes its place"
    assert monitor.reasons.keys() == {CHANGED} and 3 <= monitor.failed <= 8
    assert "3.wav: file changed since the scan" in caplog.text and "prepare the data anew" in caplog.text
    item = ClipDataset(dataset.manifest, modalities=("audio",), clip_seconds=0.5, mode="center")[0, 3]
    assert item.clips == [] and item.failures[0].reason == CHANGED


def test_a_file_that_is_replaced_while_it_is_read_gives_no_clip(tmp_path: Path, monkeypatch) -> None:
    manifest = scanned(tmp_path)
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=0.5, mode="center")
    read = clips.MediaFile.audio

    def replacing(self: clips.MediaFile, *args: object, **options: object) -> object:
        clip = read(self, *args, **options)  # type: ignore[arg-type]
        in_place(Path(self.path))
        return clip

    monkeypatch.setattr(clips.MediaFile, "audio", replacing)
    assert [failure.reason for failure in dataset[0, 2].failures] == [CHANGED]


def test_a_copy_with_other_times_is_the_same_data_and_a_replaced_file_in_it_is_not(tmp_path: Path) -> None:
    manifest = scanned(tmp_path)
    for path in tmp_path.glob("*.wav"):
        os.utime(path, ns=(0, 10**18))
    by_a_shorter(tmp_path / "4.wav")
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=0.5, mode="center")
    reasons = [[failure.reason for failure in dataset[0, k].failures] for k in range(6)]
    assert reasons == [[], [], [], [], [CHANGED], []]
    assert manifest.digest == scanned(tmp_path / "copy").digest


def test_a_cache_stops_at_a_replaced_file_and_the_next_run_has_the_new_one(tmp_path: Path, monkeypatch) -> None:
    manifest = clocks(tmp_path / "media", 5)
    make, count = write.write_sample, 0

    def replacing(job: write.Job) -> write.EncodingResult:
        nonlocal count
        count += 1
        if count == 3:
            os.utime(job.path, ns=(0, 10**18))
        return make(job)

    monkeypatch.setattr(write, "write_sample", replacing)
    with pytest.raises(DataError, match=r"\.mp4: file changed since the scan"):
        made(manifest, tmp_path / "out")
    report = made(scan(manifest, workers=0, progress=False), tmp_path / "out")
    assert report.samples == 5 and not report.failures and verify(str(tmp_path / "out"), progress=False) == []
    index = Manifest.load(tmp_path / "out" / "index.parquet")
    assert index.column("file_bytes") == [None] * 5, "the originals need not be there"


def test_a_cache_of_other_files_that_run_as_long_is_not_continued(tmp_path: Path) -> None:
    manifest = clocks(tmp_path / "media", 3)
    made(manifest, tmp_path / "out")
    with (tmp_path / "media" / "1.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    again = scan(manifest, workers=0, progress=False)
    assert again.digest == manifest.digest
    with pytest.raises(DataError, match=r"other files of the same data .*choose another --output"):
        made(again, tmp_path / "out")
