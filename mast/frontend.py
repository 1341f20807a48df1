"""Waveform to log-mel spectrogram: Kaldi's filter banks as AST and CAV-MAE use them, for a whole batch on its device.

On a CPU compiled kernels do the work (``mast/fast/cpu``), where they can be built; elsewhere torch's operators do.

The steps and their order of rounding are those of ``torchaudio.compliance.kaldi.fbank`` with ``htk_compat=True,
window_type="hanning", dither=0, use_energy=False``. The order matters: pre-emphasis attenuates low frequencies by 30 dB
after their rounding, so an algebraically equal order differs by more than 1e-3 in the lowest mel bins.
"""

import ctypes
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast.fast.cpu import frontend as native
from mast.fast.observers import observed, transformed

logger = logging.getLogger(__name__)

# Frames worked on at a time. On a CPU the intermediate arrays of a chunk should stay in the cache.
_CHUNK_FRAMES = {"cpu": 1024}
_CHUNK_FRAMES_OTHER = 2**17

DIVISORS = {"2*std": 2.0, "std": 1.0}
# What stands where a waveform ends before its clip does: see ``LogMel``.
PADS = ("wave", "zero", "edge", "repeat")


def mel_banks(num_mels: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Kaldi's triangular filters, float32 (num_mels, fft_size // 2); the Nyquist bin is left out, as in Kaldi.

    Mel scale: ``1127 ln(1 + f / 700)``.
    """
    low_mel, high_mel = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (low_hz, high_hz))
    step = (high_mel - low_mel) / (num_mels + 1)
    index = torch.arange(num_mels)[:, None]
    left, center, right = (low_mel + (index + offset) * step for offset in (0.0, 1.0, 2.0))
    hz = sample_rate / fft_size * torch.arange(fft_size // 2)
    mel = 1127.0 * (1.0 + hz / 700.0).log()[None]
    return torch.minimum((mel - left) / (center - left), (right - mel) / (right - center)).clamp_min_(0.0)


class LogMel(nn.Module):
    """Batched log-mel filter banks with the normalization that the model was trained with.

    Not differentiable with respect to the waveform. Always computed in float32, also under autocast.

    Args:
        sample_rate: of the waveform, in Hz.
        num_mels: mel bins.
        frame_length_ms, frame_shift_ms: window and hop.
        low_hz, high_hz: range of the filters; ``high_hz=None`` is half the sample rate.
        preemphasis: coefficient of the first-order high-pass.
        mean, std: statistics of the log-mel values over the training set; both None for no normalization.
            The defaults are AST's for AudioSet.
        divide_by: ``"2*std"`` (AST) or ``"std"`` (CAV-MAE).
        center_clips: subtract each waveform's mean first, as AST's data loader does.
        fixed_frames: frames that every spectrogram gets, as AST has it: shorter ones are filled with 0 *before* the
            normalization, longer ones are cut at the end, which the first one logs as a warning. None keeps the clip's
            own.
        pad: what stands in the frames of a clip behind its last sample, where ``forward`` is told how many there are:
            "wave": frames of the zeros that the waveform goes on with; "zero": 0 before the normalization, as AST and
            CAV-MAE pad; "edge": the last whole frame over and over, as Auditory SlowFast pads; "repeat": the waveform
            from its beginning again.

    Examples:
        >>> import torch
        >>> LogMel()(torch.zeros(2, 16000)).shape
        torch.Size([2, 1, 128, 98])
    """

    banks: Tensor
    hann: Tensor
    one: Tensor
    shift_by: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        num_mels: int = 128,
        frame_length_ms: float = 25.0,
        frame_shift_ms: float = 10.0,
        *,
        low_hz: float = 20.0,
        high_hz: float | None = None,
        preemphasis: float = 0.97,
        mean: float | None = -4.2677393,
        std: float | None = 4.5689974,
        divide_by: str = "2*std",
        center_clips: bool = False,
        fixed_frames: int | None = None,
        pad: str = "wave",
    ) -> None:
        super().__init__()
        if pad not in PADS:
            raise ValueError(f"pad={pad!r} must be one of {', '.join(PADS)}")
        if divide_by not in DIVISORS:
            raise ValueError(f"divide_by={divide_by!r} must be one of {', '.join(DIVISORS)}")
        if (mean is None) != (std is None) or (std is not None and std <= 0):
            raise ValueError(f"mean={mean} and std={std}: give both with std > 0, or neither")
        top = sample_rate / 2 if high_hz is None else high_hz
        if not 0 <= low_hz < top <= sample_rate / 2:
            raise ValueError(f"low_hz={low_hz}, high_hz={high_hz}: need 0 <= low_hz < high_hz <= {sample_rate / 2}")
        if not 0.0 <= preemphasis <= 1.0:
            raise ValueError(f"preemphasis={preemphasis} must lie in [0, 1]")
        if fixed_frames is not None and fixed_frames < 1:
            raise ValueError(f"fixed_frames={fixed_frames} must be at least 1, or None")
        self.window = int(sample_rate * frame_length_ms / 1000)
        self.shift = int(sample_rate * frame_shift_ms / 1000)
        if num_mels < 4 or self.window < 4 or self.shift < 1:
            raise ValueError(
                "need num_mels >= 4, a window of at least 4 samples and a shift of at least 1; "
                f"got num_mels={num_mels}, {self.window} and {self.shift} samples at {sample_rate} Hz"
            )
        self.config: dict[str, Any] = {
            "sample_rate": sample_rate,
            "num_mels": num_mels,
            "frame_length_ms": frame_length_ms,
            "frame_shift_ms": frame_shift_ms,
            "low_hz": low_hz,
            "high_hz": high_hz,
            "preemphasis": preemphasis,
            "mean": mean,
            "std": std,
            "divide_by": divide_by,
            "center_clips": center_clips,
            "fixed_frames": fixed_frames,
            "pad": pad,
        }
        self.pad = pad
        self._warned_of_cut = False
        self.sample_rate, self.num_mels = sample_rate, num_mels
        self.preemphasis, self.center_clips, self.fixed_frames = preemphasis, center_clips, fixed_frames
        # (x - mean) / divisor = -mean / divisor + x / divisor
        self.scale_by = 1.0 if std is None else 1.0 / (std * DIVISORS[divide_by])
        self.register_buffer("shift_by", torch.tensor(0.0 if mean is None else -mean * self.scale_by), persistent=False)
        self.fft_size = 1 << (self.window - 1).bit_length()
        banks = mel_banks(num_mels, self.fft_size, sample_rate, low_hz, top)
        self.filters = native.Filters.of(banks)
        # Each bin twice: filters then apply to squared real and imaginary parts as they lie in memory.
        banks = F.pad(banks, (0, 1)).repeat_interleave(2, dim=1).t().contiguous()
        self.bands = list(_bands(banks))
        self.register_buffer("banks", banks, persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.register_buffer("hann", torch.hann_window(self.window, periodic=False)[1:], persistent=False)

    def num_frames(self, samples: int) -> int:
        """Frames of a waveform's spectrogram: ``fixed_frames``, or those of its windows, which must lie within it."""
        frames = self.num_windows(samples)
        return frames if self.fixed_frames is None or not frames else self.fixed_frames

    def num_windows(self, samples: int) -> int:
        """Windows that lie within a waveform of ``samples``: the frames that are computed."""
        return max(0, 1 + (samples - self.window) // self.shift)

    def samples_for(self, frames: int) -> int:
        """Fewest samples that have ``frames`` windows."""
        return self.window + (frames - 1) * self.shift

    def sound_lengths(self, samples: Tensor | None) -> Tensor | None:
        """``samples`` (B,) where ``pad`` makes use of them, else None: zeros at the end are then a part of the clip."""
        return None if self.pad == "wave" else samples

    def valid_frames(self, samples: Tensor, total: int) -> Tensor:
        """(B,) frames that lie within the first ``samples`` (B,) of ``total`` samples; at least one."""
        frames = torch.div(samples - self.window, self.shift, rounding_mode="floor") + 1
        return frames.clamp(1, max(1, self.num_frames(total)))

    def padded(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        """``spectrogram`` (B, 1, num_mels, T) with what ``pad`` says behind the first ``frames`` (B,) of each clip."""
        if self.pad not in ("zero", "edge"):
            return spectrogram
        index = torch.arange(spectrogram.shape[-1], device=spectrogram.device)
        if self.pad == "zero":
            return torch.where(index < frames[:, None, None, None], spectrogram, self.shift_by)
        index = torch.minimum(index, frames[:, None] - 1)[:, None, None]
        return spectrogram.gather(3, index.expand(-1, -1, spectrogram.shape[2], -1))

    @torch.no_grad()
    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """Waveform (B, S) with values in [-1, 1] -> (B, 1, num_mels, num_frames(S)) float32.

        Args:
            waveform: (B, S).
            samples: (B,) how many of the S are sound, at least one; zeros follow. None: all.

        Raises:
            ValueError: not (B, S) of floats, or shorter than one window.
        """
        if samples is None and self.pad == "edge" and self.fixed_frames is not None:
            samples = all_samples(waveform)
        if samples is None or self.pad == "wave":
            return self._log_mel(waveform)
        if self.pad == "repeat":
            return self._log_mel(repeated(waveform, samples))
        return self.padded(self._log_mel(waveform), self.valid_frames(samples, waveform.shape[1]))

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """The same without padding."""
        check_waveform(waveform)
        if self.num_windows(waveform.shape[1]) == 0:
            raise ValueError(
                f"LogMel: waveform has {waveform.shape[1]} samples, one window needs {self.window} "
                f"({self.config['frame_length_ms']} ms at {self.sample_rate} Hz); pad the clip"
            )
        with torch.autocast(waveform.device.type, enabled=False):
            if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():
                return self._fitted(self._traceable(waveform.float()))[:, None]
            self._warn_of_cut(waveform.shape[1])
            kernels = native.library() if self._can_be_native(waveform) else None
            if kernels is not None:
                return self._fitted(self._by_kernels(kernels, waveform.float()))[:, None]
            return self._fitted(self._by_operators(waveform))[:, None]

    def _warn_of_cut(self, samples: int) -> None:
        """Logs, once, that waveforms of ``samples`` are longer than ``fixed_frames``."""
        if self._warned_of_cut or self.fixed_frames is None or self.num_windows(samples) <= self.fixed_frames:
            return
        self._warned_of_cut = True
        logger.warning(
            "clips of %.2f s are cut: the model is given their first %d frames of %d (fixed_frames), and nothing after "
            "the first %.2f s; give shorter clips",
            samples / self.sample_rate,
            self.fixed_frames,
            self.num_windows(samples),
            self.samples_for(self.fixed_frames) / self.sample_rate,
        )

    def _fitted(self, spectrogram: Tensor) -> Tensor:
        """(B, num_mels, T) -> the same of ``fixed_frames``."""
        if self.fixed_frames is None:
            return spectrogram
        missing = self.fixed_frames - spectrogram.shape[2]
        if missing <= 0:
            return spectrogram[..., : self.fixed_frames]
        # A value of 0 before the normalization is this one after it.
        filler = self.shift_by.expand(*spectrogram.shape[:2], missing)
        return torch.cat((spectrogram, filler), dim=2)

    def _by_operators(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, num_mels, T) by torch's operators, chunk by chunk."""
        frames = self.num_windows(waveform.shape[1])
        out = torch.empty(waveform.shape[0], self.num_mels, frames, dtype=torch.float32, device=waveform.device)
        if not len(out):  # some transforms refuse an empty batch
            return out
        chunk = max(1, _CHUNK_FRAMES.get(waveform.device.type, _CHUNK_FRAMES_OTHER) // frames)
        # Frames are as long as the transform; beyond the window they are zero, from chunk to chunk.
        windowed = out.new_zeros(min(chunk, len(out)), frames, self.fft_size)
        for clips, result in zip(waveform.split(chunk), out.split(chunk), strict=True):
            energies = self._mel_energies(self._centred(clips.float()), windowed[: len(clips)])
            energies.clamp_min_(torch.finfo(torch.float32).eps).log_()
            # The transposition and the normalization in one pass.
            torch.add(self.shift_by, energies.transpose(1, 2), alpha=self.scale_by, out=result)
        return out

    def _centred(self, waveform: Tensor) -> Tensor:
        return waveform - waveform.mean(dim=1, keepdim=True) if self.center_clips else waveform

    def _traceable(self, waveform: Tensor) -> Tensor:
        """The same without chunks and places to write to, which compilers cannot follow for every size."""
        frames = self._centred(waveform).unfold(1, self.window, self.shift)
        centred = frames - frames.mean(dim=-1, keepdim=True)
        emphasised = (centred[..., 1:] - self.preemphasis * centred[..., :-1]) * self.hann
        spectra = torch.fft.rfft(F.pad(emphasised, (1, self.fft_size - self.window)))
        energies = torch.view_as_real(spectra).square().flatten(-2) @ self.banks
        logarithms = energies.clamp_min(torch.finfo(torch.float32).eps).log()
        return self.shift_by + self.scale_by * logarithms.transpose(1, 2)

    def _can_be_native(self, waveform: Tensor) -> bool:
        """Plain tensors in memory that nobody follows, and settings that the kernels know."""
        return (
            not observed()
            and type(waveform) is Tensor
            and waveform.layout == torch.strided
            and waveform.device.type == self.hann.device.type == "cpu"
            and self.hann.dtype == torch.float32
            and self.fft_size >= 32
        )

    def _by_kernels(self, kernels: ctypes.CDLL, waveform: Tensor) -> Tensor:
        return native.log_mel(
            kernels,
            self._centred(waveform.resolve_neg()),
            self.filters,
            self.hann,
            shift=self.shift,
            fft_size=self.fft_size,
            preemphasis=self.preemphasis,
            offset=float(self.shift_by),
            scale=self.scale_by,
        )

    def _mel_energies(self, waveform: Tensor, windowed: Tensor) -> Tensor:
        """(B, S) -> (B, T, num_mels); ``windowed`` (B, T, fft_size) is room for the frames, zero beyond the window."""
        frames = waveform.unfold(1, self.window, self.shift)
        centred = frames - frames.mean(dim=-1, keepdim=True)
        # A frame's first sample has no predecessor and needs none, since the window is zero there. The factor 1 keeps
        # the product's own rounding, as in Kaldi: add with alpha would fuse the two.
        emphasised = windowed[..., 1 : self.window]
        torch.addcmul(centred[..., 1:], centred[..., :-1], self.one, value=-self.preemphasis, out=emphasised)
        emphasised.mul_(self.hann)
        squared = torch.view_as_real(torch.fft.rfft(windowed)).flatten(-2).square_().flatten(0, 1)
        energies = squared.new_empty(len(squared), self.num_mels)
        for mels, bins in self.bands:
            torch.mm(squared[:, bins], self.banks[bins, mels], out=energies[:, mels])
        return energies.unflatten(0, windowed.shape[:2])

    def extra_repr(self) -> str:
        """Shown in the model's print."""
        return ", ".join(f"{key}={value}" for key, value in self.config.items())


def check_waveform(waveform: Tensor) -> None:
    """Raises ValueError where it is not (B, S), or holds integers, which are no values in [-1, 1]."""
    if waveform.ndim != 2:
        raise ValueError(f"LogMel: expected a waveform of shape (B, samples), got {tuple(waveform.shape)}")
    if not waveform.is_floating_point():
        dtype = str(waveform.dtype).removeprefix("torch.")
        raise ValueError(f"LogMel: expected a waveform of floats in [-1, 1], got {dtype}: divide 16 bits by 32768")


def all_samples(waveform: Tensor) -> Tensor:
    """(B,) samples of a waveform (B, S) that is sound to its end."""
    return torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)


def repeated(waveform: Tensor, samples: Tensor) -> Tensor:
    """``waveform`` (B, S) of which the first ``samples`` (B,) are repeated to its end."""
    index = torch.arange(waveform.shape[1], device=waveform.device) % samples.clamp_min(1)[:, None]
    return waveform.gather(1, index)


def _bands(banks: Tensor, count: int = 4) -> Iterator[tuple[slice, slice]]:
    """Split the filters (bins, mels) into groups of mels, each with the bins where it isn't zero: half the products."""
    for mels in torch.arange(banks.shape[1]).chunk(count):
        used = banks[:, mels].any(dim=1).nonzero()
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        yield slice(int(mels[0]), int(mels[-1]) + 1), slice(first, last + 1)
