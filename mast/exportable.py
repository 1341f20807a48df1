"""Models and frontends in a form that a tracer can follow at any length: the same numbers without a branch on a size.

Eager code chooses by shape: frames come in chunks that fit a cache, tables are interpolated only where an input is
longer than the reference, heads are filled up to a multiple of 8. A graph for all lengths can't choose, so the modules
here put one formula in the place of each choice. They share the parameters of what they are made from.
"""

import copy
import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast.ast import AST
from mast.base import SpectrogramModel
from mast.fast import accelerate
from mast.frontend import LogMel, repeated
from mast.model import PoolingAttention, RelativeTable

Transform = Literal["fft", "product"]


class ExportableLogMel(nn.Module):
    """``LogMel`` of whole batches at once.

    Args:
        frontend: whose settings it takes.
        transform: "fft", or "product": the Fourier transform of a window as a product with a matrix, which every
            runtime computes well. On ESC-10's clips the product's log-mel is as near to one computed in float64
            (2e-4) as that of a fast transform is.
    """

    banks: Tensor
    basis: Tensor
    hann: Tensor

    def __init__(self, frontend: LogMel, transform: Transform = "fft") -> None:
        super().__init__()
        if transform not in ("fft", "product"):
            raise ValueError(f"transform: must be fft or product, got {transform!r}")
        self.window, self.shift, self.fft_size = frontend.window, frontend.shift, frontend.fft_size
        self.preemphasis, self.center_clips = frontend.preemphasis, frontend.center_clips
        self.transform, self.fixed_frames = transform, frontend.fixed_frames
        self.pad = frontend.pad
        self.scale_by, self.shift_by = frontend.scale_by, float(frontend.shift_by)
        # LogMel holds each bin twice, for the squared real and imaginary parts as they lie in memory.
        banks = frontend.banks.detach()
        if transform == "fft":
            self.register_buffer("hann", frontend.hann.detach().clone(), persistent=False)
            self.register_buffer("banks", banks.clone(), persistent=False)
            return
        bins = self.fft_size // 2  # the filters leave the last one out
        time = torch.arange(1, self.window, device=banks.device, dtype=torch.float64)[:, None]
        angle = time * torch.arange(bins, device=banks.device) * (2 * math.pi / self.fft_size)
        basis = frontend.hann.double()[:, None] * torch.cat((angle.cos(), angle.sin()), dim=1)
        self.register_buffer("basis", basis.float(), persistent=False)
        self.register_buffer("banks", torch.cat((banks[: 2 * bins : 2],) * 2), persistent=False)

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """Waveform (B, S), of which ``samples`` (B,) are sound -> (B, 1, num_mels, frames) float32."""
        if samples is None or self.pad == "wave":
            return self._log_mel(waveform)
        if self.pad == "repeat":
            return self._log_mel(repeated(waveform, samples))
        out = self._log_mel(waveform)
        frames = self.valid_frames(samples)
        index = torch.arange(out.shape[3], device=out.device)
        if self.pad == "zero":
            return torch.where(index < frames[:, None, None, None], out, self.shift_by)
        index = torch.minimum(index, frames[:, None] - 1)[:, None, None]
        return out.gather(3, index.expand(-1, -1, out.shape[2], -1))

    def valid_frames(self, samples: Tensor) -> Tensor:
        """(B,) frames that lie within ``samples`` (B,); at least one."""
        return (torch.div(samples - self.window, self.shift, rounding_mode="floor") + 1).clamp_min(1)

    def _log_mel(self, waveform: Tensor) -> Tensor:
        if self.center_clips:
            waveform = waveform - waveform.mean(dim=1, keepdim=True)
        count = (waveform.shape[1] - self.window) // self.shift + 1
        device = waveform.device
        starts = torch.arange(count, device=device)[:, None] * self.shift
        index = starts + torch.arange(self.window, device=device)
        frames = waveform.index_select(1, index.flatten()).unflatten(1, (count, self.window))
        centred = frames - frames.mean(dim=-1, keepdim=True)
        energies = self._squared(centred[..., 1:] - self.preemphasis * centred[..., :-1]) @ self.banks
        logs = energies.clamp_min(torch.finfo(torch.float32).eps).log()
        if self.fixed_frames is not None:
            place, last = torch.arange(self.fixed_frames, device=device), torch.arange(count, device=device)[-1]
            fitted = logs.index_select(1, torch.minimum(place, last))
            logs = torch.where((place <= last)[:, None], fitted, 0.0)
        return (logs * self.scale_by + self.shift_by).transpose(1, 2)[:, None]

    def _squared(self, frames: Tensor) -> Tensor:
        """(B, T, window - 1) -> squared real and imaginary parts (B, T, ...), in the order of the filters' rows."""
        if self.transform == "product":
            return (frames @ self.basis).square()
        spectrum = torch.fft.rfft(F.pad(frames * self.hann, (1, 0)), n=self.fft_size)
        return torch.view_as_real(spectrum).flatten(-2).square()


class ExportableTable(nn.Module):
    """``RelativeTable`` whose interpolation is part of every lookup; where none is needed its weights are 0 and 1."""

    def __init__(self, table: RelativeTable) -> None:
        super().__init__()
        self.q_stride, self.k_stride = table.q_stride, table.k_stride
        self.table = nn.Parameter(table.table.detach() * table.factor, requires_grad=False)

    def forward(self, q_size: int, k_size: int) -> Tensor:
        """Vectors for all pairs, (q_size, k_size, dim)."""
        unit, last = min(self.q_stride, self.k_stride), self.table.shape[0] - 1
        device = self.table.device
        q, k = torch.arange(q_size, device=device), torch.arange(k_size, device=device)
        reach = torch.maximum(q[-1], k[-1])  # a tensor: the larger of two sizes is no number that a graph can hold
        stretched = torch.clamp_min(2 * reach, last)  # the last row of the table at the input's length
        distance = q[:, None] * self.q_stride - k * self.k_stride
        row = torch.div(distance, unit, rounding_mode="floor") + torch.div(stretched + 1, 2, rounding_mode="floor")
        row = torch.minimum(row.clamp_min(0), stretched)
        position = row.float() * (last / stretched.float())
        below = position.floor()
        above_share = (position - below)[..., None]
        below = below.long()
        above = (below + 1).clamp_max(last)
        return F.embedding(below, self.table) * (1 - above_share) + F.embedding(above, self.table) * above_share


class ExportableAttention(nn.Module):
    """``PoolingAttention`` with the scores of the sum of three terms, for any length."""

    def __init__(self, source: PoolingAttention) -> None:
        super().__init__()
        self.heads = source.heads
        self.qkv, self.proj = source.qkv, source.proj
        self.pool_q, self.pool_k, self.pool_v = source.pool_q, source.pool_k, source.pool_v
        self.relative_freq = ExportableTable(source.relative_freq)
        self.relative_time = ExportableTable(source.relative_time)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T, dim) -> (B, F', T', dim_out)."""
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            pool(part, self.heads) for pool, part in zip((self.pool_q, self.pool_k, self.pool_v), parts, strict=True)
        )
        queries, rows, columns = q, k.shape[1], k.shape[2]
        r_freq = self.relative_freq(q.shape[1], rows)
        r_time = self.relative_time(q.shape[2], columns)
        q, k, v = (tensor.permute(0, 3, 1, 2, 4) for tensor in (q * q.shape[-1] ** -0.5, k, v))
        along_freq = q @ r_freq.transpose(1, 2)  # (B, heads, F_q, T_q, F_k)
        along_time = (q.transpose(2, 3) @ r_time.transpose(1, 2)).transpose(2, 3)
        bias = along_freq[..., :, None] + along_time[..., None, :]
        scores = q.flatten(2, 3) @ k.flatten(2, 3).transpose(2, 3) + bias.flatten(4).flatten(2, 3)
        out = scores.softmax(dim=-1) @ v.flatten(2, 3)
        out = out.unflatten(2, (queries.shape[1], queries.shape[2])).permute(0, 2, 3, 1, 4)
        return self.proj((queries + out).flatten(3))


def _stretched_positions(model: AST, grid: tuple[int, int]) -> Tensor:
    """``AST.positions_at`` with the interpolation along time for every length; a graph's number of mels is fixed."""
    special, image = model.positions[:, :2], model.position_image()
    patches = model.fitted_positions(image, 0, grid[0]).permute(0, 2, 3, 1)
    last, column = model.grid[1] - 1, torch.arange(grid[1], device=patches.device)
    length = column[-1] + 1
    position = (column.float() + 0.5) * (model.grid[1] / length.float()) - 0.5
    position = position.clamp(0.0, float(last))
    if model.config["short_positions"] == "crop":
        first = model.grid[1] // 2 - torch.div(length, 2, rounding_mode="floor")
        position = torch.where(length <= model.grid[1], (column + first).float(), position)
    below = position.floor()
    above_share = (position - below)[:, None, None]
    rows, below = patches[0].transpose(0, 1), below.long()  # (T, F, dim)
    mixed = rows.index_select(0, below) * (1 - above_share)
    mixed = mixed + rows.index_select(0, (below + 1).clamp_max(last)) * above_share
    return torch.cat((special, mixed.transpose(0, 1).flatten(0, 1)[None]), dim=1)


def exportable(model: SpectrogramModel) -> SpectrogramModel:
    """A copy of ``model`` in eval mode that a tracer can follow at any length: to be traced, not to be run."""
    plain = accelerate(copy.deepcopy(model), "reference").eval().requires_grad_(False)
    if isinstance(plain, AST):
        plain.positions_at = functools.partial(_stretched_positions, plain)  # type: ignore[method-assign]
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, PoolingAttention):
                setattr(module, name, ExportableAttention(child))
    return plain
