"""Small layers: patch embedding, MLP, stochastic depth, and the initialisation that all models share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast.recompute import recomputed


def init_weights(module: nn.Module) -> None:
    """Truncated normal (std 0.02) for linear layers, zeros for their biases; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_spectrogram(x: Tensor, model: str) -> None:
    """Raise ValueError unless ``x`` is (B, 1, F, T)."""
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(
            f"{model}: expected a spectrogram of shape (B, 1, mels, frames), got {tuple(x.shape)}; "
            "mast.LogMel makes one from a waveform (B, samples)"
        )


class PatchEmbed(nn.Module):
    """Overlapping patches of a spectrogram, as tokens on a grid.

    Args:
        dim: channels of a token.
        kernel: patch size in (mels, frames).
        stride: distance between patches in (mels, frames).
        padding: zeros on both sides in (mels, frames).
    """

    def __init__(self, dim: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, kernel, stride, padding)
        # Like a linear layer: a patch is a vector of kernel[0] * kernel[1] values.
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def grid(self, mels: int, frames: int) -> tuple[int, int]:
        """Number of patches in (frequency, time). ValueError for an input smaller than one patch."""
        size = []
        for axis, length in enumerate((mels, frames)):
            padded = length + 2 * self.proj.padding[axis] - self.proj.kernel_size[axis]  # type: ignore[operator]
            if padded < 0:
                shortest = self.proj.kernel_size[axis] - 2 * self.proj.padding[axis]  # type: ignore[operator]
                what = ("mels", "frames")[axis]
                raise ValueError(f"spectrogram has {length} {what}, the patch embedding needs at least {shortest}")
            size.append(padded // self.proj.stride[axis] + 1)
        return size[0], size[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> (B, F, T, dim)."""
        self.grid(x.shape[2], x.shape[3])
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class Mlp(nn.Module):
    """Linear -> GELU -> Linear on the last dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        hidden = self.fc1(x)
        activated = F.gelu(hidden)
        with recomputed(F.gelu, hidden, activated):
            return self.fc2(activated)

    def plain(self, x: Tensor) -> Tensor:
        """The same, keeping every step."""
        return self.fc2(F.gelu(self.fc1(x)))


class AddBranch(nn.Module):
    """Residual addition with stochastic depth (Huang et al. 2016): in training, drops a sample's branch.

    Args:
        drop_path: probability that a sample's branch is dropped; the kept ones are scaled by ``1 / (1 - drop_path)``.
    """

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is a probability below 1, got {drop_path}")
        self.drop_path = drop_path
        # Compiled code is made for one value of a number, but serves all values of a tensor: one code for all blocks.
        self.drops = drop_path > 0.0
        self.keep = torch.tensor(1.0 - drop_path, dtype=torch.float32, device="cpu")

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """``x + branch``, both (B, ...)."""
        shares = self.shares(branch)
        if shares is None:
            return x + branch
        return torch.addcmul(x, branch, shares) if x.dtype == branch.dtype else x + branch * shares

    def shares(self, branch: Tensor) -> Tensor | None:
        """Factors of the samples' branches (B, 1, ...), drawn anew: 0 or ``1 / (1 - drop_path)``. None if all are 1."""
        if not self.training or not self.drops:
            return None
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) < self.keep
        return kept.to(branch.dtype) / self.keep

    def extra_repr(self) -> str:
        """Shown in the model's print."""
        return f"drop_path={self.drop_path:.3g}"


def stochastic_depth_rule(drop_path: float, blocks: int) -> list[float]:
    """Drop probabilities rising linearly from 0 at the first block to ``drop_path`` at the last."""
    return [drop_path * index / max(1, blocks - 1) for index in range(blocks)]
