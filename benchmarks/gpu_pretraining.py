"""One setting of pretraining as the pipeline runs it, from shards: clips a second, waits, utilization, memory.

    python benchmarks/gpu_pretraining.py --data CACHE --batch 32

``benchmarks/gpu.py`` makes the cache and calls this for each setting, in a process of its own. The encoders as they are
trained, with no branch dropped, are first compared with the same weights in eager float32, which compiles them. Then
the engine runs; the windows of its log between the first and the last are what counts. In the last one torch's profiler
watches how much of the time any kernel runs on the GPU. The result is the last line of the output, as JSON.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from avssl.cli import parse
from avssl.commands.pretrain import build_task
from avssl.config import PretrainConfig
from avssl.data.loaders import Loaders
from avssl.data.splits import open_splits
from avssl.models.pair import AudioVisualPair
from avssl.tracking import read_rows
from avssl.training.initialization import complete_pair
from avssl.training.launch import launch, prepare_encoders
from avssl.training.optimizer import total_steps
from avssl.training.pretraining import PretrainTask
from avssl.training.run import Run
from mast.model import AddBranch

LARGE = Path(__file__).parents[1] / "configs" / "pretrain" / "large.yaml"
TOLERANCE = 0.1


def options_of(args: argparse.Namespace, output: Path) -> list[str]:
    """Command line of tools/pretrain.py for this setting."""
    steps = args.windows * args.window
    options = {
        "data": args.data,
        "data.val_fraction": 0,
        "data.num_workers": args.workers,
        "optim.batch_size": args.batch,
        "optim.max_steps": steps,
        "runtime.accelerator": args.device,
        "runtime.precision": "bf16-mixed",
        "runtime.compile": str(not args.eager).lower(),
        "runtime.checkpoint_activations": str(args.checkpoint_activations).lower(),
        "log.every": args.window,
        "log.validate_every": 0,
        "log.checkpoint_every": 0,
        "wandb.mode": "disabled",
        "output": output,
    }
    if args.tiny:
        options |= {"audio.model": "mast_pico", "audio.options": "{embed_dim: 16, depths: [1, 1, 1, 1]}"}
        options |= {"video.model": "tiny", "video.crop_size": 32, "data.frame_size": 40, "data.num_frames": 4}
        options |= {"data.clip_seconds": 1.0}
    return ["--config", str(LARGE), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def features(pair: AudioVisualPair, config: PretrainConfig, device: torch.device, bf16: bool) -> list[torch.Tensor]:
    """Features of sound and of video, for a whole batch."""
    generator = torch.Generator().manual_seed(0)
    seconds, size, batch = config.data.clip_seconds or 1.0, config.video.crop_size, config.optim.batch_size
    waveform = 0.1 * torch.randn(2, round(seconds * config.audio.sample_rate), generator=generator)
    frames = torch.rand(2, 3, config.data.num_frames, size, size, generator=generator)
    repeats = -(-batch // 2)
    spectrogram = pair.frontend(waveform.to(device)).repeat(repeats, 1, 1, 1)[:batch]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        found = [pair.audio(spectrogram), pair.video(frames.to(device).repeat(repeats, 1, 1, 1, 1)[:batch])]
    return [value.detach().float() for value in found]


@contextmanager
def nothing_dropped(module: nn.Module) -> Iterator[None]:
    """Within, stochastic depth keeps every branch, by the operations that training runs."""
    layers = [layer for layer in module.modules() if isinstance(layer, AddBranch)]
    before = [layer.keep.clone() for layer in layers]
    for layer in layers:
        layer.keep.fill_(1.0)
    try:
        yield
    finally:
        for layer, keep in zip(layers, before, strict=True):
            layer.keep.copy_(keep)


def call_after(task: PretrainTask, calls: dict[int, Callable[[], Any]]) -> None:
    """Lets ``task`` make the calls after the steps of these numbers, in the thread that trains."""
    after = task.after_step

    def after_step(step: int, max_steps: int) -> None:
        after(step, max_steps)
        if step in calls:
            calls[step]()

    task.after_step = after_step  # type: ignore[method-assign]


def busy_share(spans: Sequence[tuple[float, float]]) -> float | None:
    """Share of the time from the first start to the last end that at least one of the (start, end) covers."""
    if not spans:
        return None
    covered, reached = 0.0, min(start for start, _ in spans)
    begin = reached
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - begin) if reached > begin else None


def measure(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    config = complete_pair(parse(PretrainConfig, options_of(args, place / "run")))
    fabric = launch(config.runtime, config.seed)
    splits = open_splits(config.data, modalities=("audio", "video"), labelled=False, seed=config.seed, fabric=fabric)
    task = build_task(config, len(splits.train), splits.protocol.seconds)
    with nothing_dropped(task.pair.to(fabric.device).train()):  # as it is timed: other code would be compiled anew
        with torch.no_grad():
            expected = features(task.pair, config, fabric.device, bf16=False)
        prepare_encoders(config.runtime, fabric, task.pair.audio, task.pair.video)
        found = features(task.pair, config, fabric.device, bf16=True)
    difference = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    if not max(difference) <= TOLERANCE:
        raise SystemExit(f"features of sound and video differ from float32 ones by {difference}; not timing them")

    run = Run(config, place / "run", fabric, config.wandb, "pretrain")
    with run:
        steps = total_steps(config.optim, len(splits.train), fabric.world_size)
        engine = run.engine(task, steps, splits.digest, {})
        protocol, rate = splits.protocol, config.audio.sample_rate
        loaders = Loaders(config.data, protocol, ("audio", "video"), rate, args.batch, config.seed)
        gpu = fabric.device.type == "cuda"
        profiler = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
        calls: dict[int, Callable[[], Any]] = {(args.windows - 1) * args.window: profiler.start}
        if gpu:  # the first step, whose operations are counted, runs eagerly and takes more
            calls[args.window] = lambda: torch.cuda.reset_peak_memory_stats(fabric.device)
        call_after(task, calls)
        engine.fit(loaders.train(splits.train, fabric))
        profiler.stop()
        rows = read_rows(run.tracker.speed_path)[1:-1]
        on_gpu = [event for event in profiler.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
        peak = torch.cuda.max_memory_allocated(fabric.device) / 2**20 if gpu else None
        return {
            "batch": args.batch,
            "checkpoint_activations": args.checkpoint_activations,
            "compiled": not args.eager,
            "from_eager_fp32": difference,
            **{name: statistics.median(row[name] for row in rows) for name in ("clips_per_second", "data_wait")},
            "mfu": statistics.median(row["mfu"] for row in rows) if "mfu" in rows[0] else None,
            "busy": busy_share([(event.time_range.start, event.time_range.end) for event in on_gpu]),
            "peak_mib": peak,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a cache of tools/cache.py, or any other data")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=12, help="processes that load")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--windows", type=int, default=4, help="of the log; the first and the last don't count")
    parser.add_argument("--window", type=int, default=10, help="steps of a window")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script out")
    args = parser.parse_args()
    if args.windows < 3:
        parser.error("--windows: must be at least 3, for the first and the last don't count")
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(args, Path(place))))


if __name__ == "__main__":
    main()
