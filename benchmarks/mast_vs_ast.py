"""MAST-B against Hugging Face's AST: training step, inference and peak memory, in the same run.

    python benchmarks/mast_vs_ast.py --output benchmarks/results
    python benchmarks/mast_vs_ast.py --precision bf16 --label amx --output benchmarks/results

MAST is first checked against its written-out formula. On a GPU both models run under bf16 autocast, on a CPU in
float32, unless ``--precision`` says otherwise; ``--compile`` compiles both. Before it is timed, what runs in bf16 or
compiled is compared with the same weights in eager float32. Peak memory is measured in a process of its own for each
model. On a GPU whose peak is known, or with ``--peak-tflops``, MFU (model FLOPs utilization, Chowdhery et al. 2022) is
printed for both: two operations for each multiply-accumulate, three passes for a training step.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import add_run_options, compare, describe_machine, interleave, peak_rss_mib, publish
from torch import Tensor, nn

import mast
from mast.complexity import measure
from mast.model import Block

CLASSES = 527
# Dense bf16 operations a second, in units of 1e12, by a part of the GPU's name (NVIDIA's data sheets, SXM).
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
# How far logits may be from eager float32 ones, relative to their size, before a model is not timed.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


class HuggingFaceAst(nn.Module):
    """transformers' ASTForAudioClassification with SDPA, taking (B, 1, mels, frames)."""

    def __init__(self, mels: int, frames: int) -> None:
        super().__init__()
        from transformers import ASTConfig, ASTForAudioClassification

        config = ASTConfig(num_mel_bins=mels, max_length=frames, num_labels=CLASSES, attn_implementation="sdpa")
        self.model = ASTForAudioClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x[:, 0].transpose(1, 2)).logits


def build(name: str, mels: int, frames: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "hf_ast":
        return HuggingFaceAst(mels, frames).to(device)
    # Stochastic depth is off in both models: it would drop work from ours.
    return mast.create_model(name, num_classes=CLASSES, drop_path=0.0).to(device)


def prepare(name: str, args: argparse.Namespace) -> nn.Module:
    """The model as it is timed; compiled, both are so block by block, as avssl does it: equal ones share code."""
    model = build(name, args.mels, args.frames, args.device)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64
        kind = _ast_layer() if name == "hf_ast" else Block
        for block in model.modules():
            if isinstance(block, kind):
                block.compile(dynamic=False)
    return model


def _ast_layer() -> type[nn.Module]:
    from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTLayer

    return ASTLayer


@contextlib.contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=name == "bf16"):
        yield


def training_step(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], None]:
    """Forward, backward and fused AdamW on a fixed batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    target = torch.randint(CLASSES, (len(x),), device=x.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision(dtype, str(x.device)):
            logits = model(x)
        nn.functional.cross_entropy(logits.float(), target).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], None]:
    model.eval()

    def step() -> None:
        with torch.inference_mode(), precision(dtype, str(x.device)):
            model(x)

    return step


def check(name: str, mels: int, frames: int, device: str) -> float:
    """Largest difference of the model as it is timed from its plain code in float64, relative to it.

    In float32: what runs on a CPU without autocast has functions of its own.
    """
    torch.manual_seed(0)
    model = mast.create_model(name, num_classes=CLASSES).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".table"):
            nn.init.normal_(parameter)  # freshly made tables are too small to show an error
    x = torch.randn(1, 1, mels, frames)
    with torch.no_grad():
        fast = model.to(device)(x.to(device)).cpu().double()
        expected = mast.accelerate(model.cpu().double(), "reference")(x.double())
    return float((fast - expected).abs().max() / expected.abs().max())


def check_precision(name: str, model: nn.Module, x: Tensor, args: argparse.Namespace) -> float:
    """How far ``model``, as it is timed, is from the same weights in eager float32, relative to the logits' norm.

    In training, where it is timed and is compiled for that anyhow: neither model has anything random then.
    """
    plain = build(name, args.mels, args.frames, args.device)
    for each in (plain, model):
        torch.manual_seed(0)
        head = each.get_submodule("model.classifier.dense" if name == "hf_ast" else "head")
        nn.init.normal_(head.weight, std=0.1)  # fresh heads give logits near 0
    with torch.no_grad():
        expected = plain.train()(x[:4])
    with precision(args.precision, args.device):
        found = model.train()(x)[:4].float()
    return float((found.detach() - expected).norm() / expected.norm())


def peak_tflops(args: argparse.Namespace) -> float | None:
    """Peak of the device at the precision of the run, in 1e12 operations a second; None where it is not known."""
    if args.peak_tflops or not args.device.startswith("cuda") or args.precision != "bf16":
        return args.peak_tflops
    device = torch.cuda.get_device_name(args.device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device), None)


def utilization(name: str, part: str, seconds: float, args: argparse.Namespace) -> float | None:
    """MFU of a call, or None without a known peak."""
    peak = peak_tflops(args)
    if peak is None:
        return None
    counted = "ast_base" if name == "hf_ast" else name
    macs = measure(counted, num_classes=CLASSES, mels=args.mels, frames=args.frames).total_macs
    passes = 3 if part == "train" else 1
    return round(2 * passes * macs * args.batch / seconds / (peak * 1e12), 4)


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """MiB of two training steps, in a process of its own; without what the imports take."""
    command = [sys.executable, __file__, "--peak-of", name, "--batch", str(args.batch), "--frames", str(args.frames)]
    command += ["--mels", str(args.mels), "--precision", args.precision, "--device", args.device]
    command += ["--compile"] if args.compile else []
    command += ["--keep-memory"] if args.keep_memory else []
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.splitlines()[-1])["peak_mib"])


def print_peak(args: argparse.Namespace) -> None:
    x = torch.randn(args.batch, 1, args.mels, args.frames, device=args.device)
    if args.peak_of == "hf_ast":
        import transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer  # noqa: F401
    before = peak_rss_mib()
    step = training_step(prepare(args.peak_of, args), x, args.precision)
    step()
    step()
    on_gpu = args.device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_rss_mib() - before
    print(json.dumps({"peak_mib": round(peak)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mast_base", help="one of mast.list_models()")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--mels", type=int, default=128)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--compile", action="store_true", help="compile both models with torch.compile; for GPUs")
    parser.add_argument(
        "--peak-tflops", type=float, help="peak of the device for MFU; default: that of a known GPU in bf16"
    )
    parser.add_argument("--only", choices=("train", "inference", "memory"), help="one part only")
    add_run_options(parser)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")
    if args.keep_memory:
        from avssl.training.launch import keep_freed_memory

        keep_freed_memory()
    if args.peak_of:
        print_peak(args)
        return

    machine = describe_machine(args.device)
    error = check(args.model, args.mels, args.frames, args.device)
    print(f"float32 against the written-out formula in float64: relative difference {error:.1e}")
    if error > 1e-4:
        raise SystemExit("the fast model is wrong; not timing it")

    result: dict[str, Any] = {"relative_error": error}
    x = torch.randn(args.batch, 1, args.mels, args.frames, device=args.device)
    names = (args.model, "hf_ast")
    models = {name: prepare(name, args) for name in names}
    if args.precision != "fp32" or args.compile:
        result["from_eager_fp32"] = found = {name: check_precision(name, models[name], x, args) for name in names}
        print("logits as timed against eager float32: " + ", ".join(f"{name} {e:.1e}" for name, e in found.items()))
        if not max(found.values()) <= TOLERANCE[args.precision]:
            raise SystemExit("they differ by too much; not timing them")
    for part, make in (("train", training_step), ("inference", inference)):
        if args.only in (None, part):
            calls = {name: make(model, x, args.precision) for name, model in models.items()}
            times = interleave(calls, rounds=args.rounds, warmup=3 if args.compile else 1, device=args.device)
            result[part] = compare(times, *names)
            row = result[part]
            row["clips_per_s"] = [round(args.batch / row[key], 2) for key in ("ours_s", "peer_s")]
            seconds = (row["ours_s"], row["peer_s"])
            row["mfu"] = [utilization(name, part, s, args) for name, s in zip(names, seconds, strict=True)]
            low, high = row["speedup_range"]
            print(
                f"{part:9s} {args.precision}, batch {args.batch}: {args.model} {row['ours_s']:.3f} s, "
                f"Hugging Face AST {row['peer_s']:.3f} s: {row['speedup']:.2f}x faster ({low:.2f}-{high:.2f})"
            )
            if row["mfu"][0] is not None:
                print(f"{part:9s} MFU: {args.model} {row['mfu'][0]:.3f}, Hugging Face AST {row['mfu'][1]:.3f}")
            del calls
    del models  # others need the memory now
    if args.only in (None, "memory"):
        ours, peer = (peak_memory(name, args) for name in names)
        result["train_peak_mib"] = {"ours": ours, "peer": peer, "fraction": round(ours / peer, 3)}
        print(f"peak memory of a training step: {ours:.0f} MiB against {peer:.0f} MiB, {100 * ours / peer:.0f} %")
    name = f"mast_vs_ast_{args.model}_{args.device.split(':')[0]}_{args.precision}"
    name += "_compiled" if args.compile else ""
    publish(args, name, "mast_vs_ast", machine, **result)


if __name__ == "__main__":
    main()
