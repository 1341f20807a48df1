"""Steps of training and opens of media leave nothing behind: memory, file descriptors and threads stay flat.

With ``AVSSL_TEST_LONG=1`` 3,000 of each, else as many as seconds allow.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import media_factory
import pytest
from small_runs import small_pretraining
from test_shards_write import clocks, made

from avssl.commands.pretrain import pretrain
from avssl.data.manifest import Manifest
from avssl.data.media import MediaError, probe
from avssl.data.media.stream import stream_audio
from avssl.data.shards.sample import open_source
from avssl.training.engine import Engine

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass(frozen=True)
class Held:
    """What a process holds: MiB that no other process has, open descriptors, threads."""

    memory: float
    descriptors: int
    threads: int


def held(pid: int | str = "self") -> Held:
    folder = Path(f"/proc/{pid}")
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    memory = (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024
    return Held(memory, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))


def settled() -> Held:
    """Without what the allocator keeps for later."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return held()


CONTAINERS: dict[str, dict[str, Any]] = {
    "a.mp4": {},
    "a.mkv": {},
    "a.avi": {"video_codec": "mjpeg", "audio_codec": "pcm_s16le"},
    "a.ts": {},
    "a.wav": {"video_codec": None, "audio_codec": "pcm_s16le"},
    "a.flac": {"video_codec": None, "audio_codec": "flac"},
    "a.mp3": {"video_codec": None, "audio_codec": "libmp3lame"},
    "a.ogg": {"video_codec": None, "audio_codec": "libopus", "sample_rate": 48000},
    "cut.mp4": {},
    "text.mp4": {},
    "sample of a cache": {},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_opens_of_media_leave_nothing_behind(name: str, tmp_path: Path, long: bool) -> None:
    if name == "sample of a cache":
        made(clocks(tmp_path / "media", 1), tmp_path / "cache")
        path = Manifest.load(tmp_path / "cache" / "index.parquet").row(0).path
    else:
        path = media_factory.write_media(tmp_path / name, seconds=1.0, size=(64, 48), **CONTAINERS[name])
    if name == "cut.mp4":
        path.write_bytes(path.read_bytes()[:-2000])
    elif name == "text.mp4":
        path.write_text("no media at all\n" * 100)

    def open_it(number: int) -> None:
        with suppress(MediaError), open_source(path) as file:
            file.audio(0.2, 0.5)
            if CONTAINERS[name].get("video_codec", "") is not None:
                file.frames([0.1, 0.6], size=32)
        if number % 4 == 0 and path.is_file():
            probe(path, deep=True)
            with suppress(MediaError):
                list(stream_audio(path, 16000))

    for number in range(20):
        open_it(number)
    count, grown = 3000 if long else 60, []
    for _ in range(3):  # what leaks grows each time, an allocator's pool does once
        before = settled()
        for number in range(count):
            open_it(number)
        after = settled()
        logger.info("%s: %s before, %s after %d opens", name, before, after, count)
        assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
        grown.append(after.memory - before.memory)
        if grown[-1] < 16:
            break
    assert grown[-1] < 16, f"MiB more each time after {count} opens: {grown}"


def test_steps_of_training_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    """With a decoding process, validation, checkpoints and metrics; that process is looked at, too."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    steps = 3000 if long else 60
    looks: dict[int, tuple[Held, ...]] = {}
    step = Engine.step

    def looking(self: Engine, *arguments: Any) -> Any:
        if self.progress.step in (steps // 3, steps - 1):
            gc.collect()
            looks[self.progress.step] = (held(), *(held(child.pid) for child in multiprocessing.active_children()))
        return step(self, *arguments)

    monkeypatch.setattr(Engine, "step", looking)
    config = small_pretraining(tmp_path / "run", steps, every=steps // 6, workers=1)
    assert pretrain(config)["finished"]
    before, after = looks.values()
    logger.info("%s after a third, %s after all %d steps", before, after, steps)
    assert len(before) == len(after) == 2
    for early, late in zip(before, after, strict=True):
        assert (late.descriptors, late.threads) == (early.descriptors, early.threads)
        assert late.memory - early.memory < 32, f"{early} after a third, {late} after all {steps} steps"
