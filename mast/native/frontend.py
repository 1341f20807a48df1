"""Log-mel on a CPU in three passes over each chunk of frames: windowed frames, the transform, everything behind it.

Only the transform is torch's, because its rounding shows: in bins of almost no energy another transform's results
differ by more than 1e-3 in the logarithm. The passes around it are ``frontend.cpp``.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mast.native.build import load

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
        for row in banks:
            used = row.nonzero()
            first, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
            width = -(-(stop - first) // 4) * 4
            first = min(first, len(row) - width)
            starts.append(first)
            quads.append(width // 4)
            weights.append(row[first : first + width])
        return cls(torch.tensor(starts, dtype=torch.int32), torch.tensor(quads, dtype=torch.int32), torch.cat(weights))


def library() -> ctypes.CDLL | None:
    """The compiled passes, or None where there are none."""
    kernels = load("frontend")
    if kernels is not None and kernels.mast_log_mel.argtypes is None:
        kernels.mast_scratch.restype = _SIZE
        kernels.mast_scratch.argtypes = [_SIZE, _SIZE]
        kernels.mast_windowed_frames.restype = None
        kernels.mast_windowed_frames.argtypes = (
            [_POINTER, _SIZE, _POINTER] + [_SIZE] * 5 + [_POINTER, _FLOAT, _POINTER, _SIZE, _INT]
        )
        kernels.mast_log_mel.restype = None
        kernels.mast_log_mel.argtypes = (
            [_POINTER] + [_SIZE] * 6 + [_POINTER] * 3 + [_FLOAT] * 3 + [_POINTER, _POINTER, _INT]
        )
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
        hann: (window - 1,) float32, contiguous: the window without its first value, which is zero.
        shift: samples from frame to frame.
        fft_size: a power of two, at least 32.
        preemphasis: coefficient.
        offset, scale: normalization.
    """
    waveform = waveform if waveform.stride(1) == 1 else waveform.contiguous()
    window, bins = len(hann) + 1, fft_size // 2
    # torch's own means: another order of summation would round differently, and that shows as the transform's does.
    means = waveform.unfold(1, window, shift).mean(dim=-1).contiguous()
    clips, per_clip = means.shape
    total, mels = clips * per_clip, len(filters.starts)
    threads = max(1, min(torch.get_num_threads(), total // 64))
    chunk = _FRAMES_PER_THREAD * threads
    out = torch.empty(clips, mels, per_clip)
    # Frames are as long as the transform; what they do not fill stays zero from chunk to chunk.
    frames = torch.zeros(min(chunk, total), fft_size)
    scratch = torch.empty(threads * kernels.mast_scratch(bins, mels))
    taper = F.pad(hann, (1, -window % 16))
    source = (waveform.data_ptr(), waveform.stride(0), means.data_ptr(), per_clip)
    framing = (shift, window, taper.data_ptr(), preemphasis, frames.data_ptr(), fft_size, threads)
    bank = (filters.starts.data_ptr(), filters.quads.data_ptr(), filters.weights.data_ptr())
    sink = (torch.finfo(torch.float32).eps, offset, scale, out.data_ptr(), scratch.data_ptr(), threads)
    for first in range(0, total, chunk):
        count = min(chunk, total - first)
        kernels.mast_windowed_frames(*source, first, count, *framing)
        spectra = torch.fft.rfft(frames if count == len(frames) else frames[:count])
        kernels.mast_log_mel(spectra.data_ptr(), 2 * (bins + 1), per_clip, first, count, bins, mels, *bank, *sink)
    return out
