"""Loading: our loader against bare decoding, the cache against originals of 720p, scaling, and peers' loaders.

    python benchmarks/loading.py --output benchmarks/results

The sources are made here (x264 and AAC, 720p, 25 frames a second), unless --media names a folder. All rates are clips
a second of wall clock, in the same run, in turn: a clip is --frames frames of --size pixels and --seconds of 16 kHz
sound.

- bare: the same clips, decoded by the same readers in a plain loop in as many processes, and nothing else.
- pyav, decord, torchcodec: a DataLoader over what a user would write with that library alone, in as many workers.
"""

import argparse
import importlib.metadata
import itertools
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import torch
from common import describe_machine, publish, settings_of
from loading_peers import PEERS, PeerClips
from loading_sources import make_sources

from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.data.loader import make_train_loader
from avssl.data.media.pool import available_cores
from avssl.data.shards.encode import Settings
from avssl.data.shards.write import write_cache


def clips_of(data: Path, args: argparse.Namespace) -> ClipDataset:
    return ClipDataset(
        open_data(str(data), progress=False),
        clip_seconds=args.seconds,
        num_frames=args.frames,
        frame_size=args.size,
    )


def rate_of(batches: Iterator[Any], warmup: int, count: int, size: int) -> float:
    """Clips a second of ``count`` batches after ``warmup`` ones."""
    for _ in itertools.islice(batches, warmup):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * size / (time.perf_counter() - start)


def loader_rate(dataset: ClipDataset, workers: int, batches: int, args: argparse.Namespace) -> float:
    stream = iter(make_train_loader(dataset, args.batch, num_workers=workers, drop_last=False))
    rate = rate_of(stream, 2 * max(1, workers), batches, args.batch)
    stream.close()
    return rate


def peer_rate(peer: str, dataset: ClipDataset, workers: int, batches: int, args: argparse.Namespace) -> float:
    keys = keys_of(dataset, (2 * max(1, workers) + batches) * args.batch, args)
    loader = torch.utils.data.DataLoader(
        PeerClips(peer, dataset, keys), args.batch, num_workers=workers, multiprocessing_context="forkserver"
    )
    return rate_of(iter(loader), 2 * max(1, workers), batches, args.batch)


def keys_of(dataset: ClipDataset, count: int, args: argparse.Namespace) -> list[tuple[int, int]]:
    """The keys that our loader would load first."""
    sampler = make_train_loader(dataset, args.batch, drop_last=False).batch_sampler
    return list(itertools.islice(itertools.chain.from_iterable(sampler), count))


def bare(dataset: ClipDataset, keys: list[tuple[int, int]], go: Any) -> None:
    go.wait()
    for key in keys:
        if not dataset[key].clips:
            go.abort()
            raise SystemExit("a clip could not be read: both sides should do the same work")
    go.wait()


def bare_rate(dataset: ClipDataset, workers: int, batches: int, args: argparse.Namespace) -> float:
    # The clips that the loader is timed with, which come behind its warm-up.
    keys = keys_of(dataset, (2 * max(1, workers) + batches) * args.batch, args)[-batches * args.batch :]
    context = multiprocessing.get_context("forkserver")
    go = context.Barrier(workers + 1)
    processes = [context.Process(target=bare, args=(dataset, keys[k::workers], go)) for k in range(workers)]
    for process in processes:
        process.start()
    go.wait()  # all have started and unpickled what they need
    start = time.perf_counter()
    go.wait()  # all have decoded their last clip
    taken = time.perf_counter() - start
    for process in processes:
        process.join()
    return len(keys) / taken


def check_equal(originals: ClipDataset, cached: ClipDataset) -> dict[str, float]:
    """How far clips of the cache are from those of the originals, which must be near."""
    pictures, sounds = [], []
    for row in range(min(8, len(originals))):
        one, other = originals[(0, row)].clips[0], cached[(0, row)].clips[0]
        pictures.append(float(np.square(one.video.astype(float) - other.video).mean()))
        sounds.append(float(np.abs(one.audio - other.audio).max()))
    found = {"psnr_db": 10 * float(np.log10(255**2 / max(np.mean(pictures), 1e-9))), "sound_max": max(sounds)}
    if found["psnr_db"] < 25 or found["sound_max"] > 0.01:
        raise SystemExit(f"the cache holds other clips than the originals: {found}")
    return {key: round(value, 5) for key, value in found.items()}


def measure(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            rates[name].append(call())
    return rates


def ratio(rates: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
    paired = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
    return {"ratio": round(statistics.median(paired), 3), "range": [round(min(paired), 3), round(max(paired), 3)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, help="folder of files with sound and pictures; default: made here")
    parser.add_argument("--files", type=int, default=8, help="sources to make")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--short-side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--batches", type=int, default=16, help="batches of originals in each round; 6 times of the cache"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--scaling", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()
    logging.getLogger("avssl").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        media = args.media or make_sources(Path(scratch) / "media", args.files)
        manifest = open_data(str(media), progress=False)
        cache = Path(scratch) / "cache"
        report = write_cache(manifest, str(cache), Settings(args.short_side), name="benchmark", progress=False)
        originals, cached = clips_of(media, args), clips_of(cache, args)
        equal = check_equal(originals, cached)
        size = sum(file.stat().st_size for file in media.rglob("*") if file.is_file())
        w, many = args.workers, 6 * args.batches
        calls: dict[str, Callable[[], float]] = {
            "originals": partial(loader_rate, originals, w, args.batches, args),
            "bare": partial(bare_rate, originals, w, args.batches, args),
            "cache": partial(loader_rate, cached, w, many, args),
            "bare_cache": partial(bare_rate, cached, w, many, args),
        }
        absent = {name: why for name, why in ((name, PEERS[name].absent()) for name in PEERS) if why}
        for name in PEERS.keys() - absent.keys():
            calls[name] = partial(peer_rate, name, originals, w, args.batches, args)
        for count in args.scaling:
            calls[f"cache_{count}_workers"] = partial(loader_rate, cached, count, many, args)
        rates = measure(calls, args.rounds)
    result: dict[str, Any] = {
        "rates": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "loader_vs_bare": ratio(rates, "originals", "bare"),
        "cached_loader_vs_bare": ratio(rates, "cache", "bare_cache"),
        "cache_vs_originals": ratio(rates, "cache", "originals"),
        "vs_peers": {name: ratio(rates, "originals", name) for name in PEERS if name in rates},
        "absent_peers": absent,
    }
    first, cores = args.scaling[0], available_cores()  # beyond the cores nothing can scale
    medians = {count: statistics.median(rates[f"cache_{count}_workers"]) for count in args.scaling}
    result["scaling"] = {}
    for count in args.scaling:
        linear = medians[first] * min(count, cores) / min(first, cores)
        row = ratio(rates, f"cache_{count}_workers", f"cache_{first}_workers")
        result["scaling"][str(count)] = row | {"share_of_linear": round(medians[count] / linear, 3)}
    result["equality"] = equal
    result["bytes"] = {"originals": size, "cache": report.bytes}
    for name, rate in result["rates"].items():
        print(f"{name:18} {rate:9.2f} clips/s")
    for name in ("loader_vs_bare", "cached_loader_vs_bare", "cache_vs_originals", "vs_peers", "absent_peers", "scaling",
                 "equality", "bytes"):  # fmt: skip
        print(f"{name}: {result[name]}")
    versions = {"pyav": av.__version__, "decord": decord.__version__}
    if "torchcodec" not in absent:
        versions["torchcodec"] = importlib.metadata.version("torchcodec")
    settings = settings_of(args) | ({"media": "made"} if args.media is None else {})
    publish(args, "loading", "loading", machine, settings, versions=versions, **result)


if __name__ == "__main__":
    main()
