"""Copies a folder of videos at a small size that decodes fast: for long series of trials on a CPU.

    python benchmarks/shrink.py SOURCE TARGET --short-side 72

Frames are scaled and encoded anew (h264, a key frame every tenth frame), the sound is copied as it is. Files that are
there already are kept.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
from tqdm import tqdm


def shrink(source: Path, target: Path, short_side: int) -> None:
    """Writes ``target``; it appears whole or not at all."""
    partial_file = target.with_suffix(f".partial{target.suffix}")
    with av.open(str(source)) as reader, av.open(str(partial_file), "w") as writer:
        video, sound = reader.streams.video[0], reader.streams.audio[0]
        scale = short_side / min(video.width, video.height)
        small = writer.add_stream("libx264", rate=video.average_rate, options={"crf": "16", "g": "10", "bf": "0"})
        small.width, small.height = (2 * round(side * scale / 2) for side in (video.width, video.height))
        small.pix_fmt, small.time_base = "yuv420p", video.time_base
        copied = writer.add_stream_from_template(sound)
        for packet in reader.demux(video, sound):
            if packet.stream is sound and packet.dts is not None:
                packet.stream = copied
                writer.mux(packet)
            elif packet.stream is video:
                for frame in packet.decode():
                    writer.mux(small.encode(frame.reformat(small.width, small.height)))
        writer.mux(small.encode(None))
    os.replace(partial_file, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--short-side", type=int, default=72, help="pixels")
    args = parser.parse_args()

    files = sorted(path for path in args.source.rglob("*.mp4"))
    if not files:
        print(f"error: no .mp4 under {args.source}", file=sys.stderr)
        return 1
    targets = [args.target / path.relative_to(args.source) for path in files]
    for folder in {path.parent for path in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    todo = [(path, target) for path, target in zip(files, targets, strict=True) if not target.is_file()]
    if todo:
        with ProcessPoolExecutor() as pool:
            work = pool.map(partial(shrink, short_side=args.short_side), *zip(*todo, strict=True))
            for _ in tqdm(work, "shrink", len(todo), unit="file"):
                pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
