"""The batched log-mel frontend against a loop over clips with ``torchaudio.compliance.kaldi.fbank``.

    python benchmarks/frontend.py --output benchmarks/results
    python benchmarks/frontend.py --clips FOLDER      # also compares values on every recording in the folder
    python benchmarks/frontend.py --masks 1           # both with SpecAugment's masks, one of each kind

Equality is checked first. The loop always runs on the CPU, as in data loaders; with ``--device cuda`` the batched
frontend runs on the GPU, on waveforms that are there. ``MAST_NATIVE=0`` times it without its compiled kernels.
"""

import argparse
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import compare, describe_machine, interleave, publish
from torch import Tensor

import mast
from avssl.augment import SpectrogramAugment
from mast.fast.cpu import frontend as native


def torchaudio_loop(waveform: Tensor, masks: int = 0) -> Tensor:
    """As AST's and CAV-MAE's data loaders do it, clip by clip: (B, S) -> (B, frames, mels)."""
    from torchaudio.compliance.kaldi import fbank
    from torchaudio.functional import mask_along_axis

    options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0, "frame_shift": 10}
    clips = []
    for clip in waveform:
        spectrogram = fbank(clip[None], sample_frequency=16000, num_mel_bins=128, **options)[None]
        for _ in range(masks):
            for axis in (2, 1):
                spectrogram = mask_along_axis(spectrogram, spectrogram.shape[axis] // 10 + 1, 0.0, axis)
        clips.append(spectrogram[0])
    return torch.stack(clips)


def read(file: Path) -> Tensor:
    """Sound of any media file, (S,) float32, mono at 16 kHz."""
    with av.open(str(file)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=16000)
        blocks = [b for frame in container.decode(audio=0) for b in resampler.resample(frame)]
        blocks += resampler.resample(None)
    return torch.from_numpy(np.concatenate([block.to_ndarray()[0] for block in blocks]))


def compare_values(frontend: mast.LogMel, folder: str, device: str) -> dict[str, Any]:
    """How far apart the two are on every recording in ``folder`` that is long enough for a frame."""
    files = sorted(f for f in Path(folder).rglob("*") if f.suffix.lower() in (".wav", ".ogg", ".flac", ".mp3", ".mp4"))
    if not files:
        raise SystemExit(f"--clips: no wav, ogg, flac, mp3 or mp4 file in {folder}")
    clips = values = above = 0
    largest = 0.0
    for file in files:
        waveform = read(file)[None]
        if frontend.num_frames(waveform.shape[1]) == 0:
            continue
        ours = frontend(waveform.to(device))[:, 0].transpose(1, 2).cpu()
        difference = (ours - torchaudio_loop(waveform)).abs()
        largest = max(largest, float(difference.max()))
        clips, values, above = clips + 1, values + difference.numel(), above + int((difference > 1e-3).sum())
    print(f"{clips} recordings: largest difference {largest:.1e}; {above} of {values} values differ by more than 1e-3")
    return {"clips": clips, "values": values, "max_difference": largest, "above_1e-3": above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", help="folder of recordings on which values are compared, too")
    parser.add_argument("--compile", action="store_true", help="compile ours with torch.compile; for GPUs")
    parser.add_argument("--masks", type=int, default=0, help="SpecAugment's masks of each kind that both apply")
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()

    machine = describe_machine(args.device)
    torch.manual_seed(0)
    waveform = 0.1 * torch.randn(args.batch, round(16000 * args.seconds))
    on_device = waveform.to(args.device)
    frontend = mast.LogMel(mean=None, std=None).to(args.device)
    if args.compile:
        frontend.compile(dynamic=False)
    ours, peer = frontend(on_device)[:, 0].transpose(1, 2).cpu(), torchaudio_loop(waveform)
    error = float((ours - peer).abs().max())
    print(f"largest difference from torchaudio: {error:.1e}")
    exact = torchaudio_loop(waveform.double())
    errors = [float((values - exact).abs().max()) for values in (ours, peer)]
    print(f"largest difference from float64: {errors[0]:.1e}, torchaudio's {errors[1]:.1e}")
    # Another transform in float32 differs in bins that have almost no energy by chance; there float64 is the judge.
    if error > 1e-3 and not errors[0] <= 2 * errors[1]:
        raise SystemExit("the frontend differs from Kaldi's; not timing it")
    recordings = compare_values(frontend, args.clips, args.device) if args.clips else None
    augment = SpectrogramAugment(time_mask=0.1, freq_mask=0.1, masks=args.masks).train()
    calls = {
        "mast": lambda: augment(frontend(on_device), inplace=True),
        "torchaudio": lambda: torchaudio_loop(waveform, args.masks),
    }
    row = compare(interleave(calls, rounds=args.rounds, warmup=2, device=args.device), "mast", "torchaudio")
    low, high = row["speedup_range"]
    print(
        f"{args.batch} x {args.seconds:g} s: mast.LogMel on {args.device} {1e3 * row['ours_s']:.1f} ms, "
        f"torchaudio loop on cpu {1e3 * row['peer_s']:.1f} ms: {row['speedup']:.1f}x faster ({low:.1f}-{high:.1f})"
    )
    publish(
        args,
        f"frontend_{args.device}" + ("_compiled" if args.compile else ""),
        "frontend",
        machine,
        max_difference=error,
        from_float64=dict(zip(("ours", "peer"), errors, strict=True)),
        recordings=recordings,
        native_kernels=args.device == "cpu" and not args.compile and native.library() is not None,
        **row,
    )


if __name__ == "__main__":
    main()
