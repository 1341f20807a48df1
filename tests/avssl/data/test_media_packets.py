"""Frames by their packets: what a plain decoding from the beginning gives, with less of it decoded; and reuse."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import noise, numbered_frame, write_media

from avssl.data.media import MediaError, MediaFile, packets, read_audio, read_frames, video
from avssl.data.media.container import open_media


def coded(path: Path, codec: str, options: dict[str, str], gop: int = 12, seconds: float = 4.0) -> Path:
    """25 numbered frames a second over a moving texture, so that frames really depend on one another."""
    texture = np.random.default_rng(0).integers(0, 60, (200, 300, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        for k in range(round(25 * seconds)):
            image = numbered_frame(k, (96, 64)) // 2 + texture[k : k + 64, k : k + 96]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


CASES = {
    "h264.mp4": ("libx264", {"preset": "medium"}),
    "open_gop.mp4": ("libx264", {"preset": "medium", "x264-params": "open-gop=1:bframes=4:scenecut=0"}),
    "open_gop.mkv": ("libx264", {"preset": "medium", "x264-params": "open-gop=1:bframes=4:scenecut=0"}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=error:bframes=4:b-adapt=0"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "mpeg4.mov": ("mpeg4", {"bf": "2"}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_span_gives_what_decoding_all_gives(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, options = CASES[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = coded(tmp_path / name, codec, options)
    with av.open(str(path)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(every) == 100
    monkeypatch.setattr(video, "read_with_pyav", lambda *_: pytest.fail("not by packets"))
    rng = np.random.default_rng(1)
    with MediaFile(path) as file:
        for indices in ([0], [99], list(range(100)), *(rng.integers(0, 100, 4) for _ in range(12))):
            frames = file.frames((np.asarray(indices) + 0.5) / 25)
            # RGB conversion differs by a rounding where FFmpeg chooses another scaler for it.
            assert np.abs(frames.astype(int) - every[np.asarray(indices)]).mean() < 1.5, indices


def test_pictures_renewed_stripe_by_stripe_are_decoded_from_the_beginning(tmp_path: Path) -> None:
    options = {"preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=20"}
    path = coded(tmp_path / "refresh.mp4", "libx264", options, gop=20)
    with av.open(str(path)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0)) > 1, "which do not stand alone"
    with av.open(str(path)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with MediaFile(path) as file:
        for index in range(0, 100, 3):
            frame = file.frames([(index + 0.5) / 25])[0]
            assert np.abs(frame.astype(int) - every[index]).mean() < 1.5, index


@pytest.mark.realdata
def test_real_files_give_what_decoding_all_gives(real_data: Path) -> None:
    read = 0
    files = [*sorted((real_data / "odd_media").glob("*v__*")), *sorted((real_data / "grid/clips").glob("*.mp4"))[::160]]
    for path in files:
        try:
            with MediaFile(path) as file:
                starts = file.frame_starts(0.0, 2.0)
                with open_media(path) as opened:
                    if opened.format.name not in video.TIMED:
                        continue
                rng = np.random.default_rng(0)
                for low, high in ((starts[0], starts[-1]), (starts[-1] * 2 / 3, starts[-1]), (starts[-1], starts[-1])):
                    wanted = np.maximum(rng.uniform(low, high, 4), 0.0)
                    expected = video.read_with_pyav(path, wanted, file.frame_size(), ways=("all",))
                    assert np.abs(file.frames(wanted).astype(int) - expected).mean() < 1.0, (path.name, wanted)
            read += 1
        except MediaError as error:
            assert path.name.startswith(("av__pmtchange", "bad__")), error
    assert read >= 16


def test_only_what_is_wanted_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = coded(tmp_path / "a.mp4", "libx264", {"x264-params": "scenecut=0"}, gop=10)
    sent: list[int] = []
    decode = packets.decode_run

    def counting(stream, run, wanted):
        sent.append(len(run))
        return decode(stream, run, wanted)

    monkeypatch.setattr(packets, "decode_run", counting)
    read_frames(path, [2.0])  # frame 50, a keyframe
    assert sent == [1]
    sent.clear()
    read_frames(path, [0.0, 3.2])  # two keyframes, 80 frames apart
    assert sent == [1, 1]
    sent.clear()
    read_frames(path, [1.3, 1.45])  # frames 32 and 36 of one group
    assert len(sent) == 1 and sent[0] <= 10


def test_one_open_file_gives_what_many_openings_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PCM: an AAC decoder fills noisy bands with random numbers that go on from one read to the next.
    sound = noise(6.0, 44100)
    path = write_media(tmp_path / "a.mov", seconds=6.0, sample_rate=44100, audio_codec="pcm_s16le", waveform=sound)
    spans = [(2.0, 1.5), (0.0, 1.0), (4.4, 1.2), (0.3, 0.7), (2.0, 1.5)]
    alone = [(read_audio(path, *span), read_frames(path, [span[0], sum(span) - 0.1])) for span in spans]
    opened: list[object] = []
    original = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(args) or original(*args, **options))
    with MediaFile(path) as file:
        for span, (clip, frames) in zip(spans, alone, strict=True):
            again = file.audio(*span)
            assert np.array_equal(again.waveform, clip.waveform) and again.valid == clip.valid
            assert np.array_equal(file.frames([span[0], sum(span) - 0.1]), frames)
    assert len(opened) == 3, "once, and for each span at the beginning, where codecs need their run-up"
    assert file.frames([1.0]).shape == (1, 48, 80, 3), "a closed file opens again"
    file.close()
