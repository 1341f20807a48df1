"""Contrast of a large batch: InfoNCE and the sigmoid loss against lightly's NTXentLoss, in the same run.

    python benchmarks/loss.py --output benchmarks/results

A call is a forward and a backward pass to the embeddings. NTXentLoss compares every view with all others, within and
across the two, four times as many pairs as across alone. Peak memory is that of a process of its own for each, above
what it had before. Values are first compared with the formulas in float64.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import compare, describe_machine, interleave, peak_rss_mib, publish
from torch import Tensor

from avssl.objectives.contrastive import contrast, sigmoid_loss

TEMPERATURE = 0.07
SCALE, BIAS = torch.tensor(10.0), torch.tensor(-10.0)
PEER = "ntxent (lightly)"
TOLERANCE = 1e-5

Loss = Callable[..., Tensor]


def infonce(audio: Tensor, video: Tensor, chunk: int = 1024) -> Tensor:
    scale = torch.tensor(1 / TEMPERATURE)
    return (contrast(audio, video, scale, chunk=chunk)[0] + contrast(video, audio, scale, chunk=chunk)[0]) / 2


def siglip(audio: Tensor, video: Tensor, chunk: int = 1024) -> Tensor:
    return sigmoid_loss(audio, video, SCALE, BIAS, chunk=chunk)


def ntxent(audio: Tensor, video: Tensor, chunk: int = 0) -> Tensor:
    from lightly.loss import NTXentLoss  # avssl, which must come first, lets torchvision load beside any torch

    loss: Tensor = NTXentLoss(TEMPERATURE)(audio, video)
    return loss


LOSSES: dict[str, Loss] = {"infonce": infonce, "siglip": siglip, PEER: ntxent}


def written_out(name: str, audio: Tensor, video: Tensor) -> Tensor:
    """The formula of a loss, with all pairs in memory."""
    partner = torch.arange(len(audio))
    if name == "infonce":
        logits = audio @ video.T / TEMPERATURE
        chosen = [(logits.log_softmax(dim=dim).diagonal()).mean() for dim in (0, 1)]
        return -(chosen[0] + chosen[1]) / 2
    if name == "siglip":
        signs = 2 * torch.eye(len(audio), dtype=audio.dtype) - 1
        return -F.logsigmoid(signs * (SCALE * audio @ video.T + BIAS)).sum() / len(audio)
    both = F.normalize(torch.cat([audio, video]))  # lightly does, and its gradients are of what it is given
    logits = (both @ both.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.cat([partner + len(audio), partner]))


def difference(name: str, audio: Tensor, video: Tensor) -> float:
    """Of the loss in chunks, and of its gradients, from the formula in float64, relative to the largest value."""
    few = [audio.clone().requires_grad_(), video.clone().requires_grad_()]
    exact = [audio.double().requires_grad_(), video.double().requires_grad_()]
    found, expected = LOSSES[name](*few, chunk=24), written_out(name, *exact)
    ours, theirs = (torch.autograd.grad(value, both) for value, both in ((found, few), (expected, exact)))
    pairs = [(found, expected), *zip(ours, theirs, strict=True)]
    return max(float(((one - other).abs().max() / other.abs().max()).detach()) for one, other in pairs)


def embeddings(clips: int, dim: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    audio, video = (F.normalize(torch.randn(clips, dim)).requires_grad_() for _ in range(2))
    return audio, video


def step(name: str, audio: Tensor, video: Tensor) -> None:
    audio.grad = video.grad = None
    LOSSES[name](audio, video).backward()


def peak(name: str, args: argparse.Namespace) -> float:
    """MiB that a step takes above what its process had."""
    command = [sys.executable, __file__, "--memory-of", name, "--clips", str(args.clips), "--dim", str(args.dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4096, help="of the global batch")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()
    audio, video = embeddings(args.clips, args.dim)
    if args.memory_of:
        step(args.memory_of, audio[:8].detach().requires_grad_(), video[:8].detach().requires_grad_())
        before = peak_rss_mib()
        step(args.memory_of, audio, video)
        print(json.dumps(peak_rss_mib() - before))
        return

    machine = describe_machine()
    for name in LOSSES:
        if not (error := difference(name, audio[:64].detach(), video[:64].detach())) <= TOLERANCE:
            raise SystemExit(f"{name} is wrong by {error:.1e}; not timing it")
    times = interleave({name: lambda name=name: step(name, audio, video) for name in LOSSES}, rounds=args.rounds)
    rows = {}
    for name in LOSSES.keys() - {PEER}:
        rows[name] = compare(times, name, PEER) | {"peak_mib": peak(name, args), "peer_peak_mib": peak(PEER, args)}
        row = rows[name]
        print(
            f"{name:8} {row['ours_s']:.3f} s, {PEER} {row['peer_s']:.3f} s: {row['speedup']:.1f}x faster "
            f"({row['speedup_range'][0]:.1f}-{row['speedup_range'][1]:.1f}); "
            f"peak {row['peak_mib']:.0f} MiB against {row['peer_peak_mib']:.0f}"
        )
    publish(args, "loss_cpu", "loss", machine, losses=rows)


if __name__ == "__main__":
    main()
