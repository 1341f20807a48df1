"""Scanning headers against bare PyAV, which opens each file and reads the same facts, on the same number of processes.

    python benchmarks/scan.py --media data/grid/clips --output benchmarks/results

Every file is scanned under several names (symbolic links), so that the processes' start weighs little; it is counted
all the same. Then one longer scan is watched: its memory must not grow with the number of files but by their facts.
"""

import argparse
import logging
import multiprocessing
import statistics
import tempfile
from pathlib import Path

import av
from common import compare, describe_machine, interleave, publish, settings_of
from memory import MemoryWatch

from avssl.data.datasets.layout import media_files
from avssl.data.manifest import Manifest
from avssl.data.media.pool import available_cores
from avssl.data.scan import scan


def bare_probe(path: str) -> tuple[float, int, int, float, int, int]:
    """What a loop of a few lines would read: no check, no reason for a failure."""
    with av.open(path) as container:
        audio, video = container.streams.audio[0], container.streams.video[0]
        sound, pictures = audio.codec_context, video.codec_context
        seconds = (container.duration or 0) / av.time_base
        return seconds, sound.sample_rate, sound.channels, float(video.average_rate), pictures.width, pictures.height


def link(files: list[Path], count: int, folder: Path) -> list[str]:
    """``count`` names for the files."""
    names = []
    for k in range(count):
        source = files[k % len(files)]
        names.append(f"{k}{source.suffix}")
        (folder / names[-1]).symlink_to(source.resolve())
    return names


def manifest_of(names: list[str], folder: Path) -> Manifest:
    return Manifest.from_rows([{"clip_id": name, "path": name} for name in names], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="folder of files with sound and pictures")
    parser.add_argument("--names", type=int, default=8000, help="names to scan in each round")
    parser.add_argument("--long", type=int, default=40000, help="names of the scan whose memory is watched")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()
    logging.getLogger("avssl").setLevel(logging.ERROR)
    files = [args.media / name for name in media_files(args.media)]
    if not files:
        raise SystemExit(f"no media file under {args.media}")

    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        names = link(files, max(args.names, args.long), folder)
        rounds = manifest_of(names[: args.names], folder)
        paths = [str(folder / name) for name in names[: args.names]]

        def bare() -> None:
            with multiprocessing.get_context("forkserver").Pool(args.workers) as pool:
                for _ in pool.imap_unordered(bare_probe, paths, chunksize=32):
                    pass

        def bare_loop() -> None:
            for path in paths[: args.names // args.workers]:
                bare_probe(path)

        def ours(workers: int, manifest: Manifest) -> None:
            if scan(manifest, workers, progress=False).coverage(audio=True, video=True)["usable"] != len(manifest):
                raise SystemExit("some files cannot be used; both sides should do the same work")

        part = manifest_of(names[: args.names // args.workers], folder)
        calls = {
            "scan": lambda: ours(args.workers, rounds),
            "bare": bare,
            "scan in one process": lambda: ours(0, part),
            "bare in one process": bare_loop,
        }
        times = interleave(calls, rounds=args.rounds)
        rows = {}
        for title, where, count in (("processes", "", len(rounds)), ("one_process", " in one process", len(part))):
            row = compare(times, f"scan{where}", f"bare{where}")
            row |= {"scan_per_s": round(count / row["ours_s"], 1), "bare_per_s": round(count / row["peer_s"], 1)}
            print(f"{title}: scan {row['scan_per_s']} files/s, {row['speedup']:.2f} of bare PyAV's {row['bare_per_s']}")
            rows[title] = row
        long = manifest_of(names[: args.long], folder)
        with MemoryWatch() as watch:
            scan(long, args.workers, progress=False)
        samples = watch.samples
        quarter = max(1, len(samples) // 4)
        # The first samples see the processes start.
        memory = {
            "second_quarter_mib": round(statistics.median(samples[quarter : 2 * quarter]), 1),
            "last_quarter_mib": round(statistics.median(samples[-quarter:]), 1),
            "peak_mib": round(max(samples), 1),
        }
        print(f"memory of all processes over {args.long} files: {memory}")
    settings = settings_of(args) | {"media": f"{len(files)} files"}
    publish(args, "scan", "scan", machine, settings, pyav=av.__version__, **rows, memory=memory)


if __name__ == "__main__":
    main()
