"""MAST-B against Hugging Face's AST: training step, inference and peak memory, in the same run.

    python benchmarks/mast_vs_ast.py --output benchmarks/results

MAST is first checked against its written-out formula. On a GPU both models run under bf16 autocast, on a CPU in
float32, unless ``--precision`` says otherwise. Peak memory is measured in a process of its own for each model.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from common import compare, describe_machine, interleave, peak_rss_mib, settings_of, write_result
from torch import Tensor, nn

import mast

CLASSES = 527


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
    """Largest difference of the model as it is timed from the written-out formula in float64, relative to it.

    In float32: what runs on a CPU without autocast has functions of its own.
    """
    from mast import attention, relative

    torch.manual_seed(0)
    model = mast.create_model(name, num_classes=CLASSES).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".table"):
            nn.init.normal_(parameter)  # freshly made tables are too small to show an error
    x = torch.randn(1, 1, mels, frames)
    with torch.no_grad():
        fast = model.to(device)(x.to(device)).cpu().double()
        with mock.patch.object(attention, "attention", relative.reference_attention):
            expected = model.cpu().double()(x.double())
    return float((fast - expected).abs().max() / expected.abs().max())


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """MiB of two training steps, in a process of its own; without what the imports take."""
    command = [sys.executable, __file__, "--peak-of", name, "--batch", str(args.batch), "--frames", str(args.frames)]
    command += ["--mels", str(args.mels), "--precision", args.precision, "--device", args.device]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.splitlines()[-1])["peak_mib"])


def print_peak(args: argparse.Namespace) -> None:
    x = torch.randn(args.batch, 1, args.mels, args.frames, device=args.device)
    if args.peak_of == "hf_ast":
        import transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer  # noqa: F401
    before = peak_rss_mib()
    step = training_step(build(args.peak_of, args.mels, args.frames, args.device), x, args.precision)
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
    parser.add_argument("--only", choices=("train", "inference", "memory"), help="one part only")
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")
    if args.peak_of:
        print_peak(args)
        return

    machine = describe_machine(args.device)
    error = check(args.model, args.mels, args.frames, args.device)
    print(f"float32 against the written-out formula in float64: relative difference {error:.1e}")
    if error > 1e-4:
        raise SystemExit("the fast model is wrong; not timing it")

    result = {"benchmark": "mast_vs_ast", "settings": settings_of(args), "machine": machine, "relative_error": error}
    x = torch.randn(args.batch, 1, args.mels, args.frames, device=args.device)
    names = (args.model, "hf_ast")
    for part, make in (("train", training_step), ("inference", inference)):
        if args.only in (None, part):
            calls = {name: make(build(name, args.mels, args.frames, args.device), x, args.precision) for name in names}
            times = interleave(calls, rounds=args.rounds, device=args.device)
            result[part] = compare(times, *names)
            row = result[part]
            low, high = row["speedup_range"]
            print(
                f"{part:9s} {args.precision}, batch {args.batch}: {args.model} {row['ours_s']:.3f} s, "
                f"Hugging Face AST {row['peer_s']:.3f} s: {row['speedup']:.2f}x faster ({low:.2f}-{high:.2f})"
            )
            del calls
    if args.only in (None, "memory"):
        ours, peer = (peak_memory(name, args) for name in names)
        result["train_peak_mib"] = {"ours": ours, "peer": peer, "fraction": round(ours / peer, 3)}
        print(f"peak memory of a training step: {ours:.0f} MiB against {peer:.0f} MiB, {100 * ours / peer:.0f} %")
    if args.output:
        name = f"mast_vs_ast_{args.model}_{args.device.split(':')[0]}_{args.precision}"
        print(f"written: {write_result(args.output, name, result)}")


if __name__ == "__main__":
    main()
