"""How a cached sample could be stored: size, time to read a clip of it, and likeness to the frames before coding.

    python benchmarks/cache_encoding.py --output benchmarks/results

Frames of one 720p source, made here, at a short side of --short-side pixels: JPEGs one after the other (as the cache
has them), and small H.264 files with keyframes at every frame or every 12th; its sound at 16 kHz as PCM (as the cache
has it) and as FLAC. Each candidate is read from memory, --frames frames spread over --seconds seconds; processor time.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import describe_machine, interleave, publish
from loading_sources import FPS, make_sources
from PIL import Image

from avssl.data.media import MediaFile

RATE = 16000


def as_jpegs(frames: np.ndarray, quality: int) -> list[bytes]:
    images = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        images.append(buffer.getvalue())
    return images


def from_jpegs(images: list[bytes], indices: list[int]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(images[index]))) for index in indices])


def as_h264(frames: np.ndarray, crf: int, gop: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2] // 2 * 2, frames.shape[1] // 2 * 2, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        for frame in frames[:, : stream.height, : stream.width]:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def from_h264(data: bytes, indices: list[int]) -> np.ndarray:
    """With a seek to the keyframe before each wanted frame that is not in hand yet."""
    images: list[np.ndarray] = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index in indices:
            container.seek(round(index / FPS / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if round(frame.time * FPS) == index:
                    images.append(frame.to_ndarray(format="rgb24"))
                    break
    return np.stack(images)


def as_flac(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        stream.format = "s16"
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def from_flac(data: bytes, first: int, count: int) -> np.ndarray:
    """All of it is decoded: a raw FLAC has no index."""
    with av.open(io.BytesIO(data)) as container:
        pieces = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(pieces)[first : first + count].astype(np.float32) / 32768


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    height, width = min(one.shape[1], other.shape[1]), min(one.shape[2], other.shape[2])
    error = np.square(one[:, :height, :width].astype(float) - other[:, :height, :width]).mean()
    return 10 * float(np.log10(255**2 / error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short-side", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        source = next(make_sources(Path(scratch), 1).iterdir())
        with MediaFile(source) as file:
            frames = file.frames(file.frame_starts(0.0, 10.0), args.short_side)
            sound = file.audio(0.0, 10.0, RATE).waveform
    samples = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
    indices = [round((3 + (k + 0.5) / args.frames * args.seconds) * FPS) for k in range(args.frames)]
    first, count = 3 * RATE, round(args.seconds * RATE)
    stored: dict[str, Any] = {f"jpeg, quality {q}": as_jpegs(frames, q) for q in (80, 90, 95)}
    stored |= {f"h264, crf {crf}, every {gop}": as_h264(frames, crf, gop) for crf in (18, 23) for gop in (1, 12)}
    readers: dict[str, Callable[[], Any]] = {
        name: (lambda d=data: from_jpegs(d, indices))
        if isinstance(data, list)
        else (lambda d=data: from_h264(d, indices))
        for name, data in stored.items()
    }
    flac, pcm = as_flac(samples), samples.tobytes()
    readers["flac"] = lambda: from_flac(flac, first, count)
    readers["pcm"] = lambda: np.frombuffer(pcm, "<i2")[first : first + count].astype(np.float32) / 32768
    if not np.array_equal(readers["flac"](), readers["pcm"]()):
        raise SystemExit("FLAC gave other samples than PCM")
    times = interleave(readers, rounds=args.rounds, clock=time.process_time)
    rows = {}
    for name in readers:
        data = stored.get(name, flac if name == "flac" else pcm)
        size = sum(map(len, data)) if isinstance(data, list) else len(data)
        rows[name] = {
            "kb_per_second": round(size / 10 / 1000, 1),
            "read_ms": round(1e3 * statistics.median(times[name]), 3),
        }
        if name in stored:
            rows[name]["psnr_db"] = round(psnr(readers[name](), frames[indices]), 2)
        print(f"{name:24} {rows[name]}")
    publish(args, "cache_encoding", "cache_encoding", machine, candidates=rows)


if __name__ == "__main__":
    main()
