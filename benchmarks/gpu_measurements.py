"""All that only a GPU can tell, the most valuable first, in three calls of eight and a half minutes.

    python benchmarks/gpu_measurements.py FOLDER --call 1   # is it right; MAST-B against AST; kernels by name
    python benchmarks/gpu_measurements.py FOLDER --call 2   # pretraining with MViTv2-S: a step of the engine
    python benchmarks/gpu_measurements.py FOLDER --call 3   # log-mel, larger batches, inference, shards, fine-tuning

FOLDER/gpu_call1.json is written anew after every number. A part that fails is recorded, and the next one starts;
nothing starts without the time that it needs. Before anything is timed, the tests marked gpu run, every kind of block
is compared with its plain code, kernels with float64, and models as they are timed with eager float32.
``--device cpu --tiny`` tries it out with small models. What it needs beside torch is in ``benchmarks/NOTES.md``.
"""

import argparse
import collections
import copy
import gc
import importlib
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import describe_machine, interleave, write_result
from gpu_engine import finetuning_engine, pretraining_engine
from gpu_pretraining import busy_share
from mast_vs_ast import CLASSES, build, precision, prepare, utilization
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchvision.models.video.mvit import Pool

import mast
from avssl.data.batch import Batch
from avssl.models import mvit
from avssl.models.blocks import checkpoint_activations
from avssl.training.engine import Engine
from mast.fast import cuda, widened
from mast.fast.cuda.graphs import captured
from mast.model import NORM_EPS, DepthwisePool
from mast.model import attention as formula

ROOT = Path(__file__).parents[1]
CALLS = {
    1: ("tests", "machine", "blocks", "kernels", "training", "profiles"),
    2: ("pretraining", "drawing"),
    # What takes seconds comes first, then what has a goal, then what is only good to know.
    3: ("log_mel", "checkpointed", "large_training", "inference", "shards", "finetuning", "tiles"),
}
MODES = ("eager", "eager graph", "compiled", "compiled graph")
STAGES = {  # grids of queries and keys, and heads, of MAST-B's stages
    "stage 1": ((16, 256), (8, 64), 1),
    "stage 2": ((8, 128), (8, 64), 2),
    "stage 3": ((8, 64), (8, 64), 4),
    "stage 4": ((4, 32), (4, 32), 8),
}


class Measurements:
    """Numbers by part and name, in a file that is whole after each; and the time that is left.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device, self.tiny = args, args.device, args.tiny
        self.gpu = args.device.startswith("cuda")
        self._start = time.monotonic()
        self.found: dict[str, Any] = {
            "benchmark": "gpu_measurements",
            "settings": {"call": args.call, "parts": args.parts, "tiny": args.tiny},
            "machine": describe_machine(args.device),
            "computes": float(torch.ones(2, device=args.device).sum()) == 2.0,  # else no number means anything
        }

    def put(self, part: str, name: str, value: Any) -> None:
        """Record one number, and write all of them."""
        self.found.setdefault(part, {})[name] = value
        write_result(self.args.output, f"gpu_{self.args.label}", self.found)
        print(f"{time.monotonic() - self._start:5.0f} s  {part}, {name}: {str(value)[:300]}", flush=True)

    def left(self) -> float:
        """Seconds until this call has to be over."""
        return 60 * self.args.minutes - (time.monotonic() - self._start)

    def run(self, part: str, needs: float = 30.0) -> None:
        """Measure a part; what it raises is recorded."""
        if self.left() < needs:
            return self.put("not measured", part, "no time was left")
        try:
            PARTS[part](self)
        except Exception as error:  # the numbers of the other parts are worth having
            traceback.print_exc()
            self.put("not measured", part, f"{type(error).__name__}: {str(error)[:500]}")
        release(self)

    def batches(self) -> tuple[int, ...]:
        """Clips at a time: the usual one, and larger ones."""
        return (2, 4) if self.tiny else (32, 64, 128)

    def timed(self, call: Callable[[], Any], rounds: int = 10, warmup: int = 3) -> dict[str, Any]:
        """Milliseconds of a call on the device and of the processor that asks for it: medians, and the range."""
        for _ in range(warmup):
            call()
        device, host = [], []
        for _ in range(rounds):
            self._wait()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * self.gpu)]
            start = time.perf_counter()
            if events:
                events[0].record()
            call()
            host.append(1e3 * (time.perf_counter() - start))
            if events:
                events[1].record()
            self._wait()
            device.append(events[0].elapsed_time(events[1]) if events else 1e3 * (time.perf_counter() - start))
        ranged = [round(min(device), 3), round(max(device), 3)]
        medians = {"device_ms": round(statistics.median(device), 3), "host_ms": round(statistics.median(host), 3)}
        return medians | {"range_ms": ranged}

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        """Most memory that tensors had since :func:`release`."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.gpu else None


def release(to: Measurements, compiled: bool = True) -> None:
    gc.collect()
    if compiled:
        torch._dynamo.reset()
    if to.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float(f"{float((found - expected).norm() / expected.norm()):.1e}")


# What is right, before what is fast.


def tests(to: Measurements) -> None:
    """The tests that need a GPU, as CI cannot run them."""
    chosen = (
        ["tests/mast/test_files.py"] if to.tiny else ["-m", "gpu", "tests/mast", "tests/avssl/models/test_blocks.py"]
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=60"]
    limit = max(30.0, min(150.0, to.left() - 240))
    try:
        done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True, timeout=limit)
        told = done.stdout
    except subprocess.TimeoutExpired as error:
        told = (error.stdout or b"").decode() + f"\nnot over after {limit:.0f} s"
    to.put("tests", "failed", re.findall(r"^(?:FAILED|ERROR) .*", told, re.M))
    to.put("tests", "result", told.strip().splitlines()[-1] if told.strip() else done.stderr[-500:])


def blocks(to: Measurements) -> None:
    """What computes each kind of block after the comparison with the plain code, and why not the kernels."""
    for name in ("mast_nano",) if to.tiny else ("mast_base", "mast_pico", "ast_base"):
        model = mast.accelerate(mast.create_model(name, num_classes=CLASSES).to(to.device))
        to.put("blocks", name, dict(collections.Counter(mast.backends(model).values())))


def kernels(to: Measurements) -> None:
    """Attention and pooling: errors against float64, and times at MAST-B's shapes."""
    if not cuda.fits(96):
        return to.put("not measured", "kernels", "Triton is not here")
    for name, (queries, keys, heads) in STAGES.items():
        for batch in (1, to.batches()[0]):
            grids = [(batch, *grid, heads, 96) for grid in (queries, keys, keys)]
            tables = [(queries[0], keys[0], 96), (queries[1], keys[1], 96)]
            inputs = [half(shape, to).requires_grad_() for shape in (*grids, *tables)]
            call = lambda inputs=inputs: widened.attention(*inputs)  # noqa: E731
            grad = torch.randn_like(call())
            if batch == 1:
                exact = [each.detach().double().requires_grad_() for each in inputs]
                wanted = formula(*exact)
                pairs = zip(
                    [call(), *torch.autograd.grad(call(), inputs, grad)],
                    [wanted, *torch.autograd.grad(wanted, exact, grad.double())],
                    strict=True,
                )
                to.put("kernels", f"attention {name}, errors", [relative_error(a, b) for a, b in pairs])
                continue
            operations = 4 * batch * heads * 96 * queries[0] * queries[1] * keys[0] * keys[1]
            row = there_and_back(to, call, inputs, grad)
            to.put("kernels", f"attention {name}, batch {batch}", row | rates(row, operations, 2.5 * operations, 1e9))
    strides = {"stage 1": (2, 4), "stage 2": (1, 2), "stage 3": (1, 1), "stage 4": (1, 1)}
    for name, (grid, _, heads) in STAGES.items():
        layers = [DepthwisePool(96, stride).to(to.device) for stride in ((1, 1), strides[name], strides[name])]
        parameters = [p for each in layers for p in (each.weight, each.norm.weight, each.norm.bias)]
        x = half((to.batches()[0], *grid, 3 * 96 * heads), to).requires_grad_()
        settings = (heads, [1, 1], list(strides[name]), NORM_EPS)
        call = lambda x=x, p=parameters, s=settings: cuda.pool(x, p, *s)[:3]  # noqa: E731
        found = call()
        row = there_and_back(to, call, [x, *parameters], [torch.randn_like(out) for out in found])
        size = sum(out.nbytes for out in found)
        row |= rates(row, x.nbytes + size, 2 * x.nbytes + 3 * size, 1e9, "TB/s")
        exact = [copy.deepcopy(each).double() for each in layers]
        parts = zip(exact, x[:2].detach().double().chunk(3, dim=-1), found, strict=True)
        row["errors"] = [relative_error(out[:2], each(part, heads)) for each, part, out in parts]
        to.put("kernels", f"pooling {name}, queries, keys and values", row)
    for name, sizes in VIDEO_STAGES.items():
        to.put("kernels", f"pooling of MViTv2-S, {name}", video_pooling(to, *sizes))


# Of MViTv2-S: grid in time, height and width, heads, and strides of keys and values; queries are pooled with stride 1.
VIDEO_STAGES = {
    "stage 1": ((8, 56, 56), 1, 8),
    "stage 2": ((8, 28, 28), 2, 4),
    "stage 3": ((8, 14, 14), 4, 2),
    "stage 4": ((8, 7, 7), 8, 1),
}


def video_pooling(to: Measurements, grid: mvit.Size, heads: int, step: int) -> dict[str, Any]:
    """Times of the kernels and of torch's convolutions, and errors of the kernels against float64."""
    pools = tuple(
        Pool(nn.Conv3d(96, 96, 3, (1, s, s), 1, groups=96, bias=False), nn.LayerNorm(96)).to(to.device)
        for s in (1, step, step)
    )
    qkv = half((2 if to.tiny else 40, 1 + math.prod(grid), 3 * 96 * heads), to).requires_grad_()
    leaves = [qkv, *(parameter for pool in pools for parameter in pool.parameters())]
    rows: dict[str, Any] = {}
    for name, pool in (("kernels", mvit.pool_by_kernels), ("torch", mvit.pool_plainly)):

        def call(pool: Callable[..., Any] = pool) -> tuple[Tensor, ...]:
            with torch.autocast(qkv.device.type, torch.bfloat16):
                return pool(pools, qkv, heads, grid)[0]

        rows[name] = there_and_back(to, call, leaves, [torch.randn_like(out) for out in call()])
    exact = mvit.pool_plainly(copy.deepcopy(nn.ModuleList(pools)).double(), qkv[:2].detach().double(), heads, grid)[0]
    found = mvit.pool_by_kernels(pools, qkv[:2].detach(), heads, grid)[0]
    return rows | {"errors": [relative_error(*pair) for pair in zip(found, exact, strict=True)]}


def half(shape: tuple[int, ...], to: Measurements) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=to.device)


def there_and_back(to: Measurements, call: Callable[[], Any], inputs: list[Any], grad: Any) -> dict[str, Any]:
    """Milliseconds of a call forward, and of its gradients without it."""
    forward = to.timed(call)["device_ms"]
    both = to.timed(lambda: torch.autograd.grad(call(), inputs, grad))["device_ms"]
    return {"forward_ms": forward, "backward_ms": round(both - forward, 3)}


def rates(row: dict[str, float], forward: float, backward: float, unit: float, name: str = "TFLOP/s") -> dict[str, Any]:
    times = (row["forward_ms"], row["backward_ms"])
    return {name: [round(w / t / unit, 2) if t > 0 else None for w, t in zip((forward, backward), times, strict=True)]}


# MAST-B against AST.


def machine(to: Measurements) -> None:
    """Ceilings: what a copy and products of MAST-B's shapes reach."""
    x = torch.empty(1 << (20 if to.tiny else 31), dtype=torch.bfloat16, device=to.device).normal_()
    y = torch.empty_like(x)
    to.put("machine", "copy, TB/s", round(2 * x.nbytes / to.timed(lambda: y.copy_(x))["device_ms"] / 1e9, 3))
    shapes = [(8192, 8192, 8192), (16384, 1536, 384), (16384, 384, 1536), (16384, 1152, 384), (131072, 384, 96)]
    for m, n, k in [(64, 64, 64)] if to.tiny else [*shapes, (1536, 384, 16384)]:
        a, b = half((m, k), to), half((n, k), to)
        time_ms = to.timed(lambda a=a, b=b: F.linear(a, b))["device_ms"]
        to.put("machine", f"product {m} x {n} x {k}, TFLOP/s", round(2 * m * n * k / time_ms / 1e9, 2))


def models(to: Measurements) -> tuple[str, str]:
    return ("mast_nano", "mast_micro") if to.tiny else ("mast_base", "hf_ast")


@contextmanager
def timed_model(to: Measurements, name: str, mode: str, batch: int) -> Iterator[tuple[argparse.Namespace, Any, Tensor]]:
    """Settings as mast_vs_ast has them, the model, and an input; everything is released afterwards."""
    release(to)
    args = argparse.Namespace(mels=128, frames=64 if to.tiny else 1024, device=to.device, compile="compiled" in mode)
    args.precision, args.batch, args.peak_tflops = "bf16", batch, None
    # Where it is: compiled code compares no kernels with the plain code.
    model = mast.accelerate(prepare(name, args))
    if "checkpointed" in mode:
        checkpoint_activations(model)
    yield args, model, torch.randn(batch, 1, args.mels, args.frames, device=to.device)
    del model
    release(to)


def as_timed(name: str, model: nn.Module, x: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Errors of logits and of the whole gradient against the same weights in eager float32."""
    plain = build(name, args.mels, args.frames, args.device).train()
    plain.load_state_dict(model.state_dict())
    if name != "hf_ast":
        mast.accelerate(plain, "reference")
    target = torch.arange(len(x), device=x.device) % CLASSES
    found = []
    for each, dtype in ((plain, "fp32"), (model.train(), "bf16")):
        with precision(dtype, str(x.device)):
            logits = each(x[:4] if len(x) > 4 and dtype == "fp32" else x)[:4]
        loss = F.cross_entropy(logits.float(), target[:4])
        gradient = torch.autograd.grad(loss, list(each.parameters()), allow_unused=True)
        found.append((logits, torch.cat([g.flatten().float() for g in gradient if g is not None])))
    (wanted, exact), (logits, gradient) = found
    return {"logits": relative_error(logits, wanted), "gradient": relative_error(gradient, exact)}


def training(to: Measurements, batches: tuple[int, ...] = (), modes: tuple[str, ...] = MODES) -> None:
    """A training step of both models: eager and compiled, each also as one CUDA graph."""
    batches, (ours, peer) = batches or to.batches()[:1], models(to)
    for mode, batch in itertools.product(modes if to.gpu else ("eager",), batches):
        rows = {}
        for name in (ours, peer):
            if to.left() < (120 if "compiled" in mode else 60):
                return to.put("not measured", f"training {mode}, batch {batch}, {name}", "no time was left")
            with timed_model(to, name, mode, batch) as (args, model, x):
                rows[name] = training_row(to, name, mode, args, model, x)
            to.put("training", f"{mode}, batch {batch}, {name}", rows[name])
        if all("device_ms" in row for row in rows.values()):
            to.put("training", f"{mode}, batch {batch}, speedup", speedup(rows[ours], rows[peer]))


def speedup(ours: dict[str, Any], peer: dict[str, Any]) -> float:
    return round(peer["device_ms"] / ours["device_ms"], 3)


def training_row(
    to: Measurements, name: str, mode: str, args: argparse.Namespace, model: nn.Module, x: Tensor
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    start = time.perf_counter()
    target = torch.randint(CLASSES, (len(x),), device=x.device)
    try:
        if len(x) == to.batches()[0] and mode != "checkpointed":
            row["errors"] = as_timed(name, model, x, args)
            release(to, compiled=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True, capturable="graph" in mode)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with precision("bf16", str(x.device)):
                logits = model.train()(x)
            loss = F.cross_entropy(logits.float(), target)
            loss.backward()
            optimizer.step()
            return loss.detach()

        step()
        row["first_s"] = round(time.perf_counter() - start, 1)
        timed = captured(step) if "graph" in mode else step
        row |= to.timed(timed)
        row["clips_per_s"] = round(1e3 * len(x) / row["device_ms"], 1)
        row["mfu"] = utilization(name, "train", row["device_ms"] / 1e3, args)
    except torch.OutOfMemoryError:
        row["out_of_memory"] = True
    row["peak_gib"] = to.peak_gib()
    return row


def large_training(to: Measurements) -> None:
    training(to, to.batches()[-1:], ("eager", "compiled graph"))


def checkpointed(to: Measurements) -> None:
    """The memory that MAST-B takes where only the blocks' inputs are kept; to be held against AST's without."""
    name = models(to)[0]
    for batch in (to.batches()[0], to.batches()[-1]):
        if to.left() < 45:
            return to.put("not measured", f"checkpointed, batch {batch}", "no time was left")
        with timed_model(to, name, "eager checkpointed", batch) as (args, model, x):
            to.put("checkpointed", f"batch {batch}, {name}", training_row(to, name, "checkpointed", args, model, x))


def inference(to: Measurements) -> None:
    """Both at their best: compiled, as one CUDA graph."""
    ours, peer = models(to)
    for batch in (1, 2) if to.tiny else (1, 32, 256):
        rows = {}
        for name in (ours, peer):
            if to.left() < 60:
                return to.put("not measured", f"inference, batch {batch}, {name}", "no time was left")
            mode = "compiled graph" if to.gpu else "eager"
            with timed_model(to, name, mode, batch) as (_, model, x):
                model.eval()

                def call(model: nn.Module = model, x: Tensor = x) -> Tensor:
                    with torch.no_grad(), precision("bf16", str(x.device)):
                        return model(x)

                rows[name] = to.timed(captured(call) if to.gpu else call) | {"peak_gib": to.peak_gib()}
            to.put("inference", f"batch {batch}, {name}", rows[name])
        to.put("inference", f"batch {batch}, speedup", speedup(rows[ours], rows[peer]))


def kernel_times(prof: Any) -> tuple[list[tuple[float, float]], list[list[Any]]]:
    """When kernels ran (microseconds), and those that took longest: calls, name, milliseconds."""
    events = [event for event in prof.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    by_name: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for event in events:
        by_name[event.name[:110]][0] += 1
        by_name[event.name[:110]][1] += event.time_range.elapsed_us() / 1e3
    longest = sorted(by_name.items(), key=lambda item: -item[1][1])[:45]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    return spans, [[count, name, round(ms, 3)] for name, (count, ms) in longest]


def profiles(to: Measurements) -> None:
    """Where the GPU's time goes in one training step, kernel by kernel."""
    for name, mode in itertools.product(models(to), ("compiled", "eager") if to.gpu else ()):
        if to.left() < 60:
            return to.put("not measured", f"profile of {name}, {mode}", "no time was left")
        with timed_model(to, name, mode, to.batches()[0]) as (_, model, x):
            for _ in range(3):  # what is compiled is compiled first
                with profile(activities=[ProfilerActivity.CUDA]) as prof:
                    with precision("bf16", str(x.device)):
                        loss = model.train()(x).float().square().mean()
                    loss.backward()
                    model.zero_grad()
                    torch.cuda.synchronize()
            spans, longest = kernel_times(prof)
        busy = round(sum(end - start for start, end in spans) / 1e3, 2)
        to.put("profiles", f"{name}, {mode}", {"kernels": len(spans), "busy_ms": busy, "longest": longest})


# Pretraining.


def pretraining(to: Measurements) -> None:
    """The engine's step on batches that are on the device."""
    usual = to.batches()[0] if to.tiny else 40
    off, on = {"compile": False, "graphs": "off"}, {"compile": False, "graphs": "auto"}
    compiled, checkpoints = on | {"compile": True}, {"checkpoint_activations": True}
    settings: list[tuple[int, dict[str, Any]]] = [(usual, off), (usual, on), (usual, compiled)]
    settings += [(3 * usual, compiled), (3 * usual, on | checkpoints), (usual, off | {"compile": True})]
    for batch, runtime in settings if to.gpu else settings[:1]:
        shown = ", ".join(f"{key} {value}" for key, value in runtime.items())
        if to.left() < (180 if runtime["compile"] else 45):
            to.put("not measured", f"pretraining, batch {batch}, {shown}", "no time was left")
            continue
        release(to)
        try:
            engine, data = pretraining_engine(to.device, batch, runtime, to.tiny)
            to.put("pretraining", f"batch {batch}, {shown}", engine_row(to, engine, data))
        except Exception as error:  # such as too little memory: the next setting may fit
            traceback.print_exc()
            to.put("pretraining", f"batch {batch}, {shown}", f"{type(error).__name__}: {str(error)[:300]}")


def finetuning(to: Measurements) -> None:
    """The same of MAST-B alone, whose step is one graph."""
    batch = to.batches()[0]
    for compiled, graphs in ((False, "auto"), (False, "off"), (True, "auto")) if to.gpu else ((False, "off"),):
        shown = f"batch {batch}, compile {compiled}, graphs {graphs}"
        if to.left() < (150 if compiled else 30):
            to.put("not measured", f"finetuning, {shown}", "no time was left")
            continue
        release(to)
        engine, data = finetuning_engine(to.device, batch, {"compile": compiled, "graphs": graphs}, to.tiny)
        to.put("finetuning", shown, engine_row(to, engine, data))


def engine_row(to: Measurements, engine: Engine, data: Batch) -> dict[str, Any]:
    start = time.perf_counter()
    step = lambda: engine.step([data])  # noqa: E731
    step()
    first = time.perf_counter() - start
    row = to.timed(step, rounds=6, warmup=3)
    kind = ProfilerActivity.CUDA if to.gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as prof:
        for _ in range(2):
            step()
        to._wait()
    spans, longest = kernel_times(prof)
    return row | {
        "first_s": round(first, 1),
        "clips_per_s": round(1e3 * data.size / row["device_ms"], 1),
        "busy": busy_share(spans),
        "kernels_a_step": len(spans) // 2,
        "by_graphs": [] if engine.graphs is None else engine.graphs.in_use(),
        "peak_gib": to.peak_gib(),
        "longest": longest[:25],
    }


# The rest.


def drawing(to: Measurements) -> None:
    """Augmentation and log-mel of a batch of pretraining: operator by operator, and as a graph."""
    batch = to.batches()[0] if to.tiny else 40
    for graphs in ("off", "auto") if to.gpu else ("off",):
        engine, data = pretraining_engine(to.device, batch, {"graphs": graphs, "compile": graphs == "auto"}, to.tiny)
        task = engine.raw_task
        for name, inputs in (("draw_audio", (data.audio, None)), ("draw_video", (data.video,))):
            row = to.timed(partial(getattr(task, name), *inputs))
            to.put("drawing", f"{name}, batch {batch}, graphs {graphs}", row)
        release(to)


def log_mel(to: Measurements) -> None:
    """The log-mel of a batch: as it is, as a CUDA graph, compiled; against torchaudio's loop on this machine's CPU."""
    from frontend import torchaudio_loop

    waveform = 0.1 * torch.randn(to.batches()[0], 16000 * (1 if to.tiny else 10))
    there, frontend = waveform.to(to.device), mast.LogMel(mean=None, std=None).to(to.device)
    wanted = frontend(there)
    seconds = statistics.median(interleave({"loop": lambda: torchaudio_loop(waveform)}, rounds=3)["loop"])
    to.put("log_mel", "torchaudio's loop, ms", round(1e3 * seconds, 2))
    error = float((wanted[:, 0].transpose(1, 2).cpu() - torchaudio_loop(waveform)).abs().max())
    to.put("log_mel", "largest difference from it", float(f"{error:.1e}"))
    calls = {"operator by operator": lambda: frontend(there)}
    if to.gpu:
        compiled = torch.compile(copy.deepcopy(frontend), dynamic=False)
        calls |= {"compiled": lambda: compiled(there), "graph": captured(lambda: frontend(there))}
        calls["compiled graph"] = captured(lambda: compiled(there))
    for name, call in calls.items():
        off = float((call() - wanted).abs().max())
        row = to.timed(call) | {"difference": off}
        to.put("log_mel", name, row | {"speedup": round(1e3 * seconds / max(row["device_ms"], row["host_ms"]), 1)})


def tiles(to: Measurements) -> None:
    """Other tiles of attention, at stage 3: milliseconds, against those that are chosen."""
    if not cuda.fits(96):
        return to.put("not measured", "tiles", "Triton is not here")
    own = importlib.import_module("mast.fast.cuda.attention")
    Tile, (grid, _, heads) = own.Tile, STAGES["stage 3"]
    inputs = [half((to.batches()[1], *grid, heads, width), to).requires_grad_() for width in (96, 96, 96, *grid)]
    grad = torch.randn_like(inputs[0])
    others = {
        "forward": [(64, 32, 4, 3), (128, 64, 8, 3), (128, 32, 8, 2), (64, 64, 4, 2)],
        "queries": [(64, 32, 4, 3), (64, 64, 8, 2), (128, 32, 8, 2), (64, 64, 4, 2)],
        "keys": [(16, 64, 4, 2), (32, 64, 8, 2), (64, 64, 8, 2)],
    }
    chosen = dict(own.TILES)
    for kernel, candidates in others.items():
        for tile in (chosen[kernel], *(Tile(*each) for each in candidates)):
            own.TILES[kernel] = tile
            try:
                row = there_and_back(to, lambda: own.attention(*inputs)[0], inputs, grad)
            except Exception as error:  # such as too much shared memory
                row = {"failed": type(error).__name__}
            to.put("tiles", f"{kernel} {tuple(tile)}", row)
            own.TILES[kernel] = chosen[kernel]
            if to.left() < 30:
                return


def shards(to: Measurements) -> None:
    """Pretraining as the command runs it, from shards made here: how long it waits for data."""
    import gpu

    if to.left() < 150 and not to.tiny:
        return to.put("not measured", "shards", "no time was left")
    samples, workers, batch = (8, 2, 2) if to.tiny else (256, 12, 40)
    args = argparse.Namespace(tiny=to.tiny, samples=samples, device=to.device, workers=workers)
    with tempfile.TemporaryDirectory() as place:
        cache = gpu.make_cache(Path(place), args)
        row = gpu.pretraining(cache, batch, args, "--eager", "--windows", "4", "--window", "6")
        to.put("shards", f"batch {batch}", row)


PARTS: dict[str, Callable[[Measurements], None]] = {
    part.__name__: part
    for part in (
        *(tests, machine, blocks, kernels, training, profiles, pretraining, drawing),
        *(finetuning, large_training, checkpointed, inference, log_mel, tiles, shards),
    )
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="FOLDER", help="where the JSON goes")
    parser.add_argument("--call", type=int, choices=CALLS, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="these in place of the call's")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which it has to be over")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small models and batches, to try the script out")
    args = parser.parse_args(argv)
    args.label = "_".join(args.parts) if args.parts else f"call{args.call}"
    args.parts = args.parts or list(CALLS[args.call])
    os.environ.setdefault("WANDB_MODE", "disabled")
    to = Measurements(args)
    for part in args.parts:
        to.run(part)
    to.put("run", "seconds left", round(to.left()))


if __name__ == "__main__":
    main()
