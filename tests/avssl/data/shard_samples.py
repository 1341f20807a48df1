"""A small scanned data set of real files, to be cached."""

from pathlib import Path

from loading_samples import write_clock_video
from media_factory import noise, write_media

from avssl.data.manifest import Manifest
from avssl.data.scan import scan

SIZE = (64, 48)


def make_data(root: Path) -> Manifest:
    """Whole files, segments of one (two of which are the same, another not on a sample), sound alone, and a broken one.

    Splits train and test; the head "kind" has several labels, "number" one.
    """
    write_clock_video(root / "clock.mp4", seconds=8.0, size=SIZE)
    sound = noise(4.0, 44100, seed=1)
    # Not Matroska: its times are rounded to 1 ms, which moves sound by some samples after a seek.
    for name, codec in (("a.mp4", "aac"), ("b.mov", "pcm_s16le")):
        write_media(root / name, seconds=4.0, size=SIZE, sample_rate=44100, audio_codec=codec, waveform=sound)
    write_media(root / "late.mp4", seconds=3.0, size=SIZE, audio_start=0.7)
    write_media(root / "sound.wav", seconds=3.0, video_codec=None, audio_codec="pcm_s16le", waveform=noise(3.0, 16000))
    broken = write_media(root / "broken.mp4", seconds=3.0, size=SIZE, options={"movflags": "faststart"})
    data = broken.read_bytes()
    begin = data.index(b"mdat") + 4
    broken.write_bytes(data[:begin] + bytes(len(data) - begin))  # a good header, and nothing behind it
    (root / "text.mp4").write_text("no media at all")
    rows = [
        {"clip_id": "clock", "path": "clock.mp4", "split": "train"},
        {"clip_id": "part", "path": "clock.mp4", "start": 1.23456, "end": 5.5, "split": "train"},
        {"clip_id": "same", "path": "clock.mp4", "start": 1.23456, "end": 5.5, "split": "train"},
        {"clip_id": "short", "path": "clock.mp4", "start": 6.0, "end": 6.5, "split": "test"},
        {"clip_id": "a.b/c", "path": "a.mp4", "split": "train"},
        {"clip_id": "b", "path": "b.mov", "split": "train", "start": 0.31},
        {"clip_id": "late", "path": "late.mp4", "split": "train"},
        {"clip_id": "sound", "path": "sound.wav", "split": "test"},
        {"clip_id": "broken", "path": "broken.mp4", "split": "test"},
        {"clip_id": "text", "path": "text.mp4", "split": "test"},
    ]
    for k, row in enumerate(rows):
        row |= {"label.number": k % 3, "label.kind": [["x"], ["x", "y"], []][k % 3]}
    heads = {"number": ["zero", "one", "two"], "kind": ["x", "y"]}
    return scan(Manifest.from_rows(rows, root, heads), workers=0, progress=False)
