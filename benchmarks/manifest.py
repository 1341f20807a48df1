"""A manifest of 100,000 rows: how long it takes to load, and what it costs in every worker of a loader.

    python benchmarks/manifest.py --output benchmarks/results

The workers are the loader's own, decoding sound. Their memory with a manifest of 100 rows is subtracted to tell what
the rows cost.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
import wave
from itertools import islice
from pathlib import Path

import pyarrow as pa
from common import describe_machine, publish
from memory import memory_mib

from avssl.data.clips import ClipDataset
from avssl.data.loader import make_train_loader
from avssl.data.manifest import Manifest

CLASSES = [f"class {k}" for k in range(309)]


def make_manifest(rows: int, folder: Path) -> Manifest:
    """Rows as of VGGSound: ids, paths, segments, labels, facts of a scan; all of one file, which exists."""
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 16000 * 10))
    return Manifest.from_rows(
        [
            {
                "clip_id": f"--0PQM4-hqg_{k:06d}",
                "path": "sound.wav",
                "start": 0.0,
                "end": 10.0,
                "split": "train",
                "duration": 10.0,
                "has_audio": True,
                "has_video": False,
                "sample_rate": 16000,
                "channels": 1,
                "label.sound": k % len(CLASSES),
                "youtube_id": f"{k:011d}",
            }
            for k in range(rows)
        ],
        folder,
        {"sound": CLASSES},
    )


def worker_memory(manifest: Manifest, workers: int, batches: int) -> list[dict[str, float]]:
    """MiB of each worker after some batches."""
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=1.0)
    stream = iter(make_train_loader(dataset, 32, num_workers=workers))
    for _ in islice(stream, batches):
        pass
    memory = [memory_mib(process.pid) for process in multiprocessing.active_children() if process.pid]
    stream.close()
    return [{key: round(value, 1) for key, value in one.items()} for one in memory]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()

    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "manifest.parquet"
        make_manifest(args.rows, path.parent).save(path)
        size = path.stat().st_size / 2**20
        times = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            manifest = Manifest.load(path)
            times.append(time.perf_counter() - start)
        load = statistics.median(times)
        print(f"{args.rows} rows, {size:.1f} MiB on disk: loaded in {load:.3f} s ({min(times):.3f}-{max(times):.3f})")
        large = worker_memory(manifest, args.workers, args.batches)
        small = worker_memory(make_manifest(100, path.parent), args.workers, args.batches)
    more = {
        key: round(max(one[key] for one in large) - max(one[key] for one in small), 1) for key in ("rss", "pss", "uss")
    }
    print(f"workers, MiB: {large}; with 100 rows: {small}; the rows cost {more}")
    publish(
        args,
        "manifest",
        "manifest",
        machine,
        pyarrow=pa.__version__,
        file_mib=round(size, 2),
        load_s=round(load, 4),
        load_s_range=[min(times), max(times)],
        workers_mib=large,
        workers_with_100_rows_mib=small,
        rows_cost_mib=more,
    )


if __name__ == "__main__":
    main()
