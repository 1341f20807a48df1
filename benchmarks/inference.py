"""Inference: eager, compiled, onnxruntime in float32 and int8; a folder's embedding beside its bare decoding; windows.

    python benchmarks/inference.py runtimes --models mast_pico mast_base --output benchmarks/results
    python benchmarks/inference.py folder --media data/grid/clips --workers 1 --output benchmarks/results
    python benchmarks/inference.py windows --output benchmarks/results

``runtimes`` classifies waveforms of 10.24 s one at a time (latency) and in batches (throughput), all in one process and
in turn; a float32 runtime whose logits differ from eager ones by more than 1e-4 is not timed. ``folder`` runs
``tools/embed.py``'s work, from the checkpoint to the Parquet file, in turn with as many processes that decode the same
clips and throw them away; what both start is counted. The encoder is small, for it shares the cores with the decoding.
``windows`` slides over a recording with every frame of its spectrogram computed once, in turn with frames computed
anew for each window.
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import compare, describe_machine, interleave, publish
from torch import Tensor

import mast

TOLERANCE = 1e-4


def runtimes(args: argparse.Namespace) -> dict[str, Any]:
    """Latency and throughput of each model on each runtime."""
    rows = {}
    for name in args.models:
        torch.manual_seed(0)
        model = mast.create_model(name, num_classes=args.classes).eval()
        torch.nn.init.normal_(model.get_submodule("head").weight, std=0.1)  # fresh heads give logits near 0
        rows[name] = one_model(model, mast.LogMel(), args)
    return rows


def one_model(model: mast.SpectrogramModel, frontend: mast.LogMel, args: argparse.Namespace) -> dict[str, Any]:
    def eager(waveform: Tensor) -> Tensor:
        return model(frontend(waveform))

    calls: dict[str, Callable[[Tensor], Tensor]] = {"eager": eager}
    if not args.no_compile:
        compiled = torch.compile(model)
        calls["compile"] = lambda waveform: compiled(frontend(waveform))
    row: dict[str, Any] = {"bytes": {}}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        whole = mast.export_onnx(model, frontend, Path(folder) / "whole.onnx")
        row["export_s"] = round(time.perf_counter() - started, 1)
        small = mast.quantize_onnx(whole, Path(folder) / "int8.onnx")
        for label, path in (("onnxruntime", whole), ("onnxruntime_int8", small)):
            exported = mast.open_exported(path, threads=torch.get_num_threads())
            calls[label] = lambda waveform, run=exported: run(waveform)["logits"]
            row["bytes"][label] = path.stat().st_size
        with torch.inference_mode():
            for size in (1, args.batch):
                row[f"batch_{size}"] = timed(calls, 0.1 * torch.randn(size, round(16000 * args.seconds)), args)
                print(f"{model.name}, batch {size}: {row[f'batch_{size}']}", flush=True)
    return row


def timed(calls: dict[str, Callable[[Tensor], Tensor]], waveform: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    expected = calls["eager"](waveform)
    differences = {name: float((call(waveform) - expected).abs().max()) for name, call in calls.items()}
    wrong = [name for name, value in differences.items() if "int8" not in name and not value <= TOLERANCE]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)}: logits differ by more than {TOLERANCE} from eager ones: {differences}")
    times = interleave({name: lambda c=call: c(waveform) for name, call in calls.items()}, rounds=args.rounds)
    return {
        name: {
            "difference": differences[name],
            "clips_per_s": round(len(waveform) / statistics.median(times[name]), 3),
            "than_eager": compare(times, name, "eager"),
        }
        for name in calls
    }


def folder(args: argparse.Namespace) -> dict[str, Any]:
    """Clips per second of embedding and of decoding alone."""
    from avssl.cli import parse
    from avssl.commands.embed import embed_media, format_for, read_features, select
    from avssl.config import EmbedConfig
    from avssl.data.clips import ClipDataset
    from avssl.data.windows import cut_into_windows
    from avssl.loading import load

    logging.getLogger("avssl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        os.environ["AVSSL_CACHE"] = f"{place}/cache"
        run, output = write_checkpoint(Path(place), args), Path(place) / "features.parquet"
        options = ["--data", str(args.media), "--output", str(output), "--data.num_workers", str(args.workers)]
        config = parse(EmbedConfig, ["--checkpoint", str(run), *options, "--batch_size", str(args.batch)])
        model = load(run)
        source = format_for(model, config)
        clips, _ = select(config, source)  # scans, so that the headers are in the cache of both
        windows, _ = cut_into_windows(clips, source.seconds, modalities=source.modalities)
        decoding = {"clip_seconds": source.seconds, "sample_rate": source.sample_rate, "mode": "center"}
        frames = {"num_frames": source.num_frames, "frame_size": source.frame_size, "channel": source.channel}
        dataset = ClipDataset(windows, modalities=source.modalities, **decoding, **frames)
        calls = {"embed": lambda: embed_media(config), "decode": lambda: decode_all(dataset, args.workers)}
        embed_media(config)
        check_some(read_features(output), dataset, model)
        times = interleave(calls, rounds=args.rounds, warmup=0)
    row = compare(times, "embed", "decode")
    speeds = {name: round(len(windows) / statistics.median(seconds), 1) for name, seconds in times.items()}
    share = row["speedup"]
    print(
        f"{len(windows)} clips, {args.workers} processes: {speeds} clips/s; embedding at {100 * share:.1f} % of decode"
    )
    return {"clips": len(windows), "modalities": source.modalities, "clips_per_s": speeds, "share": share, **row}


def check_some(features: dict[str, np.ndarray], dataset: Any, model: Any) -> None:
    """Three rows of the file against the model on clips decoded here."""
    for row in (0, len(dataset) // 2, len(dataset) - 1):
        with torch.inference_mode():
            expected = model.embeddings(dataset.collate([dataset[(0, row)]]))
        for name, values in expected.items():
            difference = np.abs(features[name][row] - values[0].numpy()).max()
            if not difference <= TOLERANCE:
                raise SystemExit(f"{name} of row {row} differs by {difference:.1e}; not timing it")


_dataset: Any = None


def _begin(dataset: Any) -> None:
    global _dataset
    torch.set_num_threads(1)
    _dataset = dataset


def _decode(row: int) -> int:
    return len(_dataset[(0, row)].clips)


def decode_all(dataset: Any, workers: int) -> int:
    """Decode every clip in ``workers`` processes, and throw it away there."""
    with multiprocessing.get_context("forkserver").Pool(workers, _begin, (dataset,)) as pool:
        return sum(pool.imap_unordered(_decode, range(len(dataset)), chunksize=8))


def write_checkpoint(place: Path, args: argparse.Namespace) -> Path:
    """A pair with random weights for media with pictures, an audio encoder for sound alone."""
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depths": [1, 1, 2, 1]}
    run = place / "run"
    if args.audio:
        encoder = mast.create_model("mast_pico", **options)
        extra = {"clip_seconds": args.clip_seconds}
        return mast.save_pretrained(encoder, run, frontend=mast.LogMel(num_mels=64), extra=extra)
    from avssl.models.pair import AudioVisualPair

    pair = AudioVisualPair.build(
        audio="mast_pico",
        audio_options=options,
        frontend_options={"num_mels": 64},
        video="tiny",
        num_frames=8,
        crop_size=48,
        embedding_dim=128,
    )
    weights = {f"pair.{name}": value for name, value in pair.state_dict().items()}
    state = {"settings": {"kind": "pair", "pair": pair.settings}, "average": None, "task": weights}
    (run / "checkpoints").mkdir(parents=True)
    torch.save(state, run / "checkpoints" / "last.ckpt")
    data = {"name": "demo", "clip_seconds": args.clip_seconds, "frame_size": 56, "num_frames": 8}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return run


def windows(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds for the spectrograms, and for the predictions, of a recording's windows; with and without reuse."""
    from avssl.loading import load
    from avssl.prediction import Predictor

    torch.manual_seed(0)
    recording = [0.1 * np.random.default_rng(0).standard_normal(round(16000 * args.recording)).astype(np.float32)]
    with tempfile.TemporaryDirectory() as place:
        model = mast.create_model("mast_pico", num_classes=10, embed_dim=32, depths=[1, 1, 2, 1])
        labels, extra = {"class": [str(k) for k in range(10)]}, {"clip_seconds": args.window}
        mast.save_pretrained(model, place, frontend=mast.LogMel(num_mels=64), labels=labels, extra=extra)
        predictor = Predictor(load(place), hop=args.hop, device="cpu")
    cut = list(predictor.windows(recording))
    batches = [cut[first : first + args.batch] for first in range(0, len(cut), args.batch)]
    cpu, frontend = torch.device("cpu"), predictor.classifier.frontend

    def reused() -> list[Tensor]:
        sliding = predictor.sliding()
        assert sliding is not None
        return [sliding(batch, cpu) for batch in batches]

    def anew() -> list[Tensor]:
        return [frontend(torch.from_numpy(np.stack([window.waveform for window in batch]))) for batch in batches]

    def all_anew() -> list[Any]:
        return [prediction for batch in batches for prediction in predictor.classify(batch)]

    def all_reused() -> list[Any]:
        return list(predictor.predict(recording, args.batch))

    pairs = zip(all_reused(), all_anew(), strict=True)
    difference = max(float(np.abs(a.scores["class"] - b.scores["class"]).max()) for a, b in pairs)
    if not difference <= 1e-6:
        raise SystemExit(f"scores differ by {difference:.1e}; not timing them")
    spectrograms = compare(interleave({"reused": reused, "anew": anew}, rounds=args.rounds), "reused", "anew")
    predictions = compare(interleave({"reused": all_reused, "anew": all_anew}, rounds=args.rounds), "reused", "anew")
    print(f"{len(cut)} windows: spectrograms {spectrograms}, predictions {predictions}")
    return {"windows": len(cut), "difference": difference, "spectrograms": spectrograms, "predictions": predictions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("runtimes", help="eager, torch.compile, onnxruntime")
    one.add_argument("--models", nargs="+", default=["mast_pico"])
    one.add_argument("--classes", type=int, default=527)
    one.add_argument("--seconds", type=float, default=10.24)
    one.add_argument("--batch", type=int, default=4)
    one.add_argument("--no-compile", action="store_true")
    two = parts.add_parser("folder", help="embedding beside bare decoding")
    two.add_argument("--media", type=Path, required=True)
    two.add_argument("--audio", action="store_true", help="embed sound alone")
    two.add_argument("--clip-seconds", type=float, default=2.0)
    two.add_argument("--workers", type=int, default=1)
    two.add_argument("--batch", type=int, default=32)
    three = parts.add_parser("windows", help="overlapping windows with and without shared frames")
    three.add_argument("--recording", type=float, default=60.0, help="seconds")
    three.add_argument("--window", type=float, default=2.0)
    three.add_argument("--hop", type=float, default=0.2)
    three.add_argument("--batch", type=int, default=16)
    for part in (one, two, three):
        part.add_argument("--rounds", type=int, default=5)
        part.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()
    machine = describe_machine()
    result = {"runtimes": runtimes, "folder": folder, "windows": windows}[args.part](args)
    name = f"inference_{args.part}" + (f"_{args.media.name}" if args.part == "folder" else "")
    publish(args, name, f"inference {args.part}", machine, result=result)


if __name__ == "__main__":
    main()
