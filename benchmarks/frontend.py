"""The batched log-mel frontend against a loop over clips with ``torchaudio.compliance.kaldi.fbank``.

    python benchmarks/frontend.py --output benchmarks/results

Equality is checked first.
"""

import argparse

import torch
from common import compare, describe_machine, interleave, settings_of, write_result
from torch import Tensor

import mast


def torchaudio_loop(waveform: Tensor) -> Tensor:
    """As AST's and CAV-MAE's data loaders do it, clip by clip: (B, S) -> (B, frames, mels)."""
    from torchaudio.compliance.kaldi import fbank

    options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0, "frame_shift": 10}
    clips = [fbank(clip[None], sample_frequency=16000, num_mel_bins=128, **options) for clip in waveform]
    return torch.stack(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()

    machine = describe_machine(args.device)
    torch.manual_seed(0)
    waveform = 0.1 * torch.randn(args.batch, round(16000 * args.seconds), device=args.device)
    frontend = mast.LogMel(mean=None, std=None).to(args.device)
    error = float((frontend(waveform)[:, 0].transpose(1, 2) - torchaudio_loop(waveform)).abs().max())
    print(f"largest difference from torchaudio: {error:.1e}")
    if error > 1e-3:
        raise SystemExit("the frontend differs from Kaldi's; not timing it")
    calls = {"mast": lambda: frontend(waveform), "torchaudio": lambda: torchaudio_loop(waveform)}
    row = compare(interleave(calls, rounds=args.rounds, warmup=2, device=args.device), "mast", "torchaudio")
    low, high = row["speedup_range"]
    print(
        f"{args.batch} x {args.seconds:g} s: mast.LogMel {1e3 * row['ours_s']:.1f} ms, torchaudio loop "
        f"{1e3 * row['peer_s']:.1f} ms: {row['speedup']:.1f}x faster ({low:.1f}-{high:.1f})"
    )
    if args.output:
        result = {
            "benchmark": "frontend",
            "settings": settings_of(args),
            "machine": machine,
            "max_difference": error,
            **row,
        }
        print(f"written: {write_result(args.output, f'frontend_{args.device}', result)}")


if __name__ == "__main__":
    main()
