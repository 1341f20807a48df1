"""Gradient caching at many times the batch: peak memory and time a clip, beside the small batch without it.

    python benchmarks/gradient_cache.py --output benchmarks/results

Each setting trains in a process of its own. Memory is the peak of the process above what it held before the first step;
on a CPU, malloc is told to give freed memory back, so that the peak is what is needed and not what it has hoarded
(``--hoard`` lets it). The gradients themselves are compared in the tests.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from common import describe_machine, peak_rss_mib, publish, settings_of, synchronize


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Trains a few steps with the given batch and chunk in this process."""
    import torch

    from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
    from avssl.data.batch import Batch
    from avssl.models import AudioVisualPair
    from avssl.objectives import Shapes, create_objective
    from avssl.training.pretraining import PretrainTask

    torch.manual_seed(0)
    gpu = args.device.startswith("cuda")
    size, frames, side = args.batch, args.frames, args.side
    pair = AudioVisualPair.build(
        audio=args.audio, video=args.video, num_frames=frames, crop_size=side, projections={"infonce": {}}
    )
    shapes = Shapes(128, pair.audio.num_features, pair.video.num_features, size, pair.audio.stride)
    task = PretrainTask(
        pair,
        [("infonce", create_objective("infonce", shapes), 1.0)],
        wave=WaveAugment(),
        spectrogram=SpectrogramAugment(time_mask=0.1, freq_mask=0.1),
        video=VideoAugment(side),
        chunk=args.chunk or None,
    )
    task.to(args.device)
    batch = Batch(
        audio=torch.randn(size, round(16000 * args.seconds)),
        video=torch.randint(0, 256, (size, 3, frames, side, side), dtype=torch.uint8),
        labels={},
        index=torch.arange(size),
        clip_ids=[str(i) for i in range(size)],
        start=torch.zeros(size, dtype=torch.float64),
    ).to(args.device)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    before = torch.cuda.memory_allocated() / 2**20 if gpu else peak_rss_mib()
    times = []
    for _ in range(args.steps):
        synchronize(args.device)
        start = time.perf_counter()
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=gpu):
            losses, _ = task(batch)
        losses["infonce"].backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(args.device)
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else peak_rss_mib()
    return {"memory_mib": peak - before, "process_mib": peak, "seconds_per_clip": min(times) / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="the small batch, which is the chunk of the big one")
    parser.add_argument("--times", type=int, default=16, help="how many times larger the big batch is")
    parser.add_argument("--audio", default="mast_pico")
    parser.add_argument("--video", default="tiny")
    parser.add_argument("--seconds", type=float, default=2.56)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hoard", action="store_true", help="leave malloc as it is")
    parser.add_argument("--chunk", type=int, default=-1, help=argparse.SUPPRESS)  # given to the processes it starts
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()
    if args.chunk >= 0:
        sys.stdout.write(json.dumps(measure(args)) + "\n")
        return

    def run(batch: int, chunk: int) -> dict[str, float]:
        options = {**settings_of(args), "batch": batch, "chunk": chunk}
        options.pop("hoard")
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
        environment = os.environ | ({} if args.hoard else {"MALLOC_MMAP_THRESHOLD_": str(2**17)})
        printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured: dict[str, float] = json.loads(printed.splitlines()[-1])
        return measured

    small, big = run(args.batch, 0), run(args.batch * args.times, args.batch)
    ratios = {key: big[key] / small[key] for key in small}
    print(f"batch {args.batch}: {small['memory_mib']:.0f} MiB, {1e3 * small['seconds_per_clip']:.1f} ms a clip")
    print(f"batch {args.batch * args.times}, chunks of {args.batch}: {big['memory_mib']:.0f} MiB", end="")
    print(f" ({ratios['memory_mib']:.2f}x), {1e3 * big['seconds_per_clip']:.1f} ms a clip", end="")
    print(f" ({ratios['seconds_per_clip']:.2f}x); whole process {ratios['process_mib']:.2f}x")
    publish(
        args,
        f"gradient_cache_{args.device}",
        "gradient_cache",
        describe_machine(args.device),
        {key: value for key, value in settings_of(args).items() if key != "chunk"},
        small=small,
        big=big,
        ratios=ratios,
    )


if __name__ == "__main__":
    main()
