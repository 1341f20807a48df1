"""A block of MAST against its nearest relatives: timm's of MViTv2 and torchvision's of MViT, in the same run.

    python benchmarks/blocks.py --output benchmarks/results

Sizes are those of MAST-B's first and third stage, but on square grids, which timm asks for. timm's block computes the
same function, so it is given the same weights, and values and gradients are compared first; torchvision's has a class
token and relative positions along time as well. A call is a forward and a backward pass in float32, or inference.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import compare, describe_machine, interleave, publish
from torch import Tensor, nn

import mast
from mast.model import NORM_EPS, Block

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Size:
    """Channels, heads, side of the grid, and pooling of keys and values in both directions."""

    dim: int
    heads: int
    side: int
    kv_stride: int


SIZES = {"stage 1": Size(96, 1, 64, 4), "stage 3": Size(384, 4, 24, 1)}


def ours(size: Size) -> Block:
    stride = (size.kv_stride, size.kv_stride)
    grid = (size.side, size.side)
    return mast.accelerate(Block(size.dim, size.dim, size.heads, grid, (1, 1), stride, mlp_ratio=4.0, drop_path=0.0))


def of_timm(size: Size, block: Block, scaled_positions: bool = True) -> nn.Module:
    """timm's block with the weights of ``block``, which was made with ``scaled_positions``."""
    from timm.models.mvitv2 import MultiScaleBlock

    stride = (size.kv_stride, size.kv_stride)
    peer = MultiScaleBlock(
        size.dim,
        size.dim,
        size.heads,
        (size.side, size.side),
        kernel_q=(3, 3),
        kernel_kv=(3, 3),
        stride_kv=stride,
        has_cls_token=False,
        expand_attn=True,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
    )
    state = dict(block.state_dict())
    for name in "qkv":
        weights = f"attn.pool_{name}.norm"
        for kind in ("weight", "bias"):
            state[f"attn.norm_{name}.{kind}"] = state.pop(f"{weights}.{kind}")
    for theirs, axis in (("rel_pos_h", "freq"), ("rel_pos_w", "time")):
        table = state.pop(f"attn.relative_{axis}.table")
        # Distance 0 is our middle row, but theirs is that of the last key, counted in queries.
        first = table.shape[0] // 2 - (-(-size.side // size.kv_stride) - 1) * size.kv_stride
        # As the authors' code, timm does not divide the positions' scores by sqrt(dim), which their equation 4 does.
        divided = table.shape[1] ** -0.5 if scaled_positions else 1.0
        state[f"attn.{theirs}"] = torch.cat([table[first:], table[:first]]) * divided
    peer.load_state_dict(state)
    return peer


def of_torchvision(size: Size) -> nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MultiscaleBlock

    stride = [1, size.kv_stride, size.kv_stride]
    config = MSBlockConfig(size.heads, size.dim, size.dim, [1, 3, 3], [1, 3, 3], [1, 1, 1], stride)
    return MultiscaleBlock([1, size.side, size.side], config, True, True, True, True)


def check(size: Size, block: Block, peer: nn.Module) -> float:
    """Largest difference of values and gradients of the input, relative to the largest of timm's."""
    x = torch.randn(2, size.side, size.side, size.dim, requires_grad=True)
    flat = x.detach().flatten(1, 2).requires_grad_()
    mine, theirs = block(x), peer(flat, [size.side, size.side])[0]
    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (theirs * weight.flatten(1, 2)).sum().backward()
    assert x.grad is not None and flat.grad is not None
    pairs = ((mine.flatten(1, 2), theirs), (x.grad.flatten(1, 2), flat.grad))
    return max(float(((one - other).abs().max() / other.abs().max()).detach()) for one, other in pairs)


def calls(size: Size, block: Block, peer: nn.Module, batch: int, train: bool) -> dict[str, Callable[[], None]]:
    grid = torch.randn(batch, size.side, size.side, size.dim)
    tokens = grid.flatten(1, 2)
    with_class = torch.cat([tokens[:, :1], tokens], dim=1)
    visual = of_torchvision(size)
    for module in (block, peer, visual):
        module.train(train)

    def call(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
        def step() -> None:
            if train:
                run(x.detach().requires_grad_()).sum().backward()
            else:
                with torch.inference_mode():
                    run(x)

        return step

    return {
        "mast": call(block, grid),
        "timm": call(lambda x: peer(x, [size.side, size.side])[0], tokens),
        "torchvision": call(lambda x: visual(x, (1, size.side, size.side))[0], with_class),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", help="folder for the JSON result; none by default")
    args = parser.parse_args()

    machine = describe_machine()
    rows: dict[str, dict[str, Any]] = {}
    for name, size in SIZES.items():
        torch.manual_seed(0)
        block = ours(size)
        for table in (block.attn.relative_freq.table, block.attn.relative_time.table):
            nn.init.normal_(table)  # freshly made tables are too small to show an error
        peer = of_timm(size, block)
        error = check(size, block, peer)
        print(f"{name}: relative difference from timm's block with the same weights {error:.1e}")
        if not error <= TOLERANCE:
            raise SystemExit("the blocks differ; not timing them")
        rows[name] = {"relative_error": error}
        for part in ("train", "inference"):
            times = interleave(calls(size, block, peer, args.batch, part == "train"), rounds=args.rounds)
            for other in ("timm", "torchvision"):
                row = rows[name][f"{part} vs {other}"] = compare(times, "mast", other)
                low, high = row["speedup_range"]
                print(
                    f"{name}, {part:9} mast {row['ours_s']:.3f} s, {other} {row['peer_s']:.3f} s: "
                    f"{row['speedup']:.2f}x faster ({low:.2f}-{high:.2f})"
                )
    publish(args, "blocks_cpu", "blocks", machine, sizes=rows)


if __name__ == "__main__":
    main()
