"""GPU kernels in Triton, which comes with torch for CUDA: absent elsewhere."""

import importlib.util

import torch
from torch import Tensor

from mast.fast.observers import transformed

_INSTALLED = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None

if _INSTALLED:
    from mast.fast.cuda.attention import attention as attention
    from mast.fast.cuda.pooling import pool as pool
    from mast.fast.cuda.pooling3d import pool3d as pool3d


def fits(dim: int) -> bool:
    """Whether there are kernels here, for heads of ``dim`` channels."""
    return _INSTALLED and 16 <= dim <= 128


def usable(x: Tensor, dim: int) -> bool:
    """Whether kernels take ``x`` with heads of ``dim`` channels: half precision on CUDA, and nobody transforms it."""
    if not x.is_cuda or x.dtype not in (torch.float16, torch.bfloat16) or not fits(dim):
        return False
    if torch.compiler.is_compiling():
        return not exporting()
    return x.numel() > 0 and not torch.jit.is_tracing() and not transformed()


def exporting() -> bool:
    """Whether torch.export traces this.

    Not ``torch.compiler.is_exporting()``: within any torch.compile of torch 2.11 that is true, and compiled blocks
    would never reach a kernel. What it returns elsewhere is this flag.
    """
    return torch.compiler._is_exporting_flag
