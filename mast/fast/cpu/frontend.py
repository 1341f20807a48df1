"""Log-mel on a CPU in three passes over each chunk of frames: windowed frames, the transform, everything behind it.

Only the transform is torch's, because its rounding shows: in bins of almost no energy another transform's results
differ by more than 1e-3 in the logarithm. The passes around it are ``frontend.cpp``.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mast.fast.cpu import mkl
from mast.fast.cpu.build import load

# Frames that a thread works on at a time: 1 MiB with their spectra at 512 samples, which stays in a core's cache.
_FRAMES_PER_THREAD = 256

_POINTER, _SIZE, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


@dataclass(frozen=True)
class Filters:
    """Mel filters without most of their zeros: filter m has ``4 * quads[m]`` weights from bin ``starts[m]`` on.

    Attributes:
        starts, quads: (num_mels,) int32.
        weights: float32, one filter's after another's.
    """

    starts: Tensor
    quads: Tensor
    weights: Tensor

    @classmethod
    def of(cls, banks: Tensor) -> "Filters":
        """From a dense bank, float32 (num_mels, bins) with at least 4 bins."""
        starts, quads, weights = [], [], []
        for row in banks.cpu():
            used = row.nonzero()
            first, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
            width = max(4, -(-(stop - first) // 4) * 4)  # one without bins gets zeros, so that NaN reaches it, too
            first = min(first, len(row) - width)
            starts.append(first)
            quads.append(width // 4)
            weights.append(row[first : first + width])
        where, size = (torch.tensor(values, dtype=torch.int32, device="cpu") for values in (starts, quads))
        return cls(where, size, torch.cat(weights))


class _Job(ctypes.Structure):
    """``struct Job`` of ``frontend.cpp``."""

    _fields_ = (
        ("waveform", _POINTER), ("clip_stride", _SIZE), ("means", _POINTER),
        ("per_clip", _SIZE), ("shift", _SIZE), ("window", _SIZE), ("taper", _POINTER), ("fft_size", _SIZE),
        ("mels", _SIZE), ("starts", _POINTER), ("quads", _POINTER), ("weights", _POINTER), ("out", _POINTER),
        ("transform", _POINTER), ("descriptor", _POINTER),
        ("preemphasis", _FLOAT), ("floor", _FLOAT), ("offset", _FLOAT), ("scale", _FLOAT), ("threads", _INT),
    )  # fmt: skip


def library(*flags: str) -> ctypes.CDLL | None:
    """The compiled passes, or None where there are none; ``flags`` as for :func:`mast.fast.cpu.load`."""
    kernels = load("frontend", *flags)
    if kernels is not None and kernels.mast_log_mel.argtypes is None:
        job = ctypes.POINTER(_Job)
        kernels.mast_batch.restype = kernels.mast_scratch.restype = _SIZE
        kernels.mast_scratch.argtypes = [job]
        kernels.mast_means.restype = kernels.mast_windowed_frames.restype = None
        kernels.mast_means.argtypes = [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER]
        kernels.mast_windowed_frames.argtypes = [job, _SIZE, _SIZE, _POINTER]
        kernels.mast_log_mel.restype = ctypes.c_long
        kernels.mast_log_mel.argtypes = [job, _SIZE, _SIZE, _POINTER, _POINTER]
    return kernels


def log_mel(
    kernels: ctypes.CDLL,
    waveform: Tensor,
    filters: Filters,
    hann: Tensor,
    *,
    shift: int,
    fft_size: int,
    preemphasis: float,
    offset: float,
    scale: float,
) -> Tensor:
    """Waveform (B, S) float32 on the CPU -> (B, num_mels, T): ``offset + scale * log-mel``.

    Args:
        kernels: what :func:`library` gave.
        waveform: at least one window long.
        filters: over bins below ``fft_size // 2``.
        hann: (window - 1,) float32: the window without its first value, which is zero.
        shift: samples from frame to frame.
        fft_size: a power of two, at least 32.
        preemphasis: coefficient.
        offset, scale: normalization.
    """
    waveform = waveform if waveform.stride(1) == 1 else waveform.contiguous()
    window, mels = len(hann) + 1, len(filters.starts)
    clips, per_clip = len(waveform), 1 + (waveform.shape[1] - window) // shift
    means = None if sums_like_torch(kernels, window) else waveform.unfold(1, window, shift).mean(dim=-1).contiguous()
    total = clips * per_clip
    out = waveform.new_empty(clips, mels, per_clip)
    taper = F.pad(hann, (1, -window % 16))
    job = _Job(
        waveform=waveform.data_ptr(),
        clip_stride=waveform.stride(0),
        means=None if means is None else means.data_ptr(),
        per_clip=per_clip,
        shift=shift,
        window=window,
        taper=taper.data_ptr(),
        fft_size=fft_size,
        mels=mels,
        starts=filters.starts.data_ptr(),
        quads=filters.quads.data_ptr(),
        weights=filters.weights.data_ptr(),
        out=out.data_ptr(),
        transform=mkl.transform(),
        descriptor=mkl.descriptor(fft_size, kernels.mast_batch()),
        preemphasis=preemphasis,
        floor=torch.finfo(torch.float32).eps,
        offset=offset,
        scale=scale,
        threads=max(1, min(torch.get_num_threads(), total // 64)),
    )
    scratch = waveform.new_zeros(job.threads * kernels.mast_scratch(job))
    if job.descriptor is None:
        _in_turns(kernels, job, total, scratch)
    else:
        failed = kernels.mast_log_mel(job, 0, total, None, scratch.data_ptr())
        if failed:
            raise RuntimeError(f"LogMel: MKL's transform of {fft_size} samples failed with status {failed}")
    return out


@functools.cache
def sums_like_torch(kernels: ctypes.CDLL, window: int) -> bool:
    """Whether the means of the kernel are torch's to the bit: another order of summation would show as said above."""
    if window >= 512:
        return False
    generator = torch.Generator().manual_seed(window)
    rows = torch.randn(64, window, generator=generator, dtype=torch.float32, device="cpu") + 0.5
    means = rows.new_empty(64)
    kernels.mast_means(rows.data_ptr(), window, window, 64, means.data_ptr())
    return torch.equal(means, rows.mean(dim=-1))


def _in_turns(kernels: ctypes.CDLL, job: _Job, total: int, scratch: Tensor) -> None:
    """Chunk by chunk: frames, torch's transform, everything behind it."""
    chunk = _FRAMES_PER_THREAD * job.threads
    # Frames are as long as the transform; what they do not fill stays zero from chunk to chunk.
    frames = scratch.new_zeros(min(chunk, total), job.fft_size)
    for first in range(0, total, chunk):
        count = min(chunk, total - first)
        kernels.mast_windowed_frames(job, first, count, frames.data_ptr())
        spectra = torch.fft.rfft(frames[:count])
        kernels.mast_log_mel(job, first, count, spectra.data_ptr(), scratch.data_ptr())
