"""Masked spectrogram modelling with a hierarchical encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.augment import stretch_units
from avssl.objectives.reconstruction import draw_units, masked_error, normalized


class AudioReconstruction(nn.Module):
    """Predicts masked units of a spectrogram from the encoder's tokens, by one linear layer.

    A unit is what one token of the coarsest stage covers, so no stage mixes masked and seen pixels within a token's own
    place (Hiera, Ryali et al. 2023). It is replaced in input space, by a learnable pattern: behind a patch embedding
    whose patches overlap, masked tokens would still hold pixels of their neighbours (SimMIM, Xie et al. 2022, masks
    behind one whose patches do not).

    Args:
        width: Channels of a token.
        unit: Mel bins and frames of a unit.
        share: Share of the units that is masked.
        normalize: Normalize each unit's target.
    """

    def __init__(self, width: int, unit: tuple[int, int], share: float, normalize: bool) -> None:
        super().__init__()
        self.unit, self.share, self.normalize = unit, share, normalize
        self.pattern = nn.Parameter(torch.zeros(unit))
        self.head = nn.Linear(width, unit[0] * unit[1])

    def no_weight_decay(self) -> set[str]:
        """The pattern is an input, not a weight."""
        return {"pattern"}

    def forward(self, encoder: nn.Module, spectrogram: Tensor) -> Tensor:
        """``spectrogram`` (b, 1, F, T) -> (b, 3), see :func:`~avssl.objectives.reconstruction.masked_error`.

        ``encoder.forward_grid`` gives tokens (b, F', T', A). Where its grid is smaller than that of the units, as it
        may be at the upper and the right edge, units without a token have no error.
        """
        mask = draw_units(spectrogram, self.share, self.unit)
        seen = self._hide(spectrogram, mask)
        tokens = encoder.forward_grid(seen)  # type: ignore[operator]  # a SpectrogramModel
        rows, columns = min(tokens.shape[1], mask.shape[1]), min(tokens.shape[2], mask.shape[2])
        target = self._split(spectrogram)[:, :rows, :columns]
        exists = self._split(torch.ones_like(spectrogram[:1]))[:, :rows, :columns]
        if self.normalize:
            target = normalized(target, exists)
        return masked_error(self.head(tokens[:, :rows, :columns]), target, mask[:, :rows, :columns], exists)

    def _hide(self, spectrogram: Tensor, mask: Tensor) -> Tensor:
        """The pattern in place of masked units."""
        mels, frames = spectrogram.shape[-2:]
        pattern = self.pattern.repeat(mask.shape[1], mask.shape[2])[:mels, :frames]
        return torch.where(stretch_units(mask, self.unit, (mels, frames))[:, None], pattern, spectrogram)

    def _split(self, spectrogram: Tensor) -> Tensor:
        """(b, 1, F, T) -> units (b, f, t, P); those at the edges are filled up with zeros."""
        missing = [-size % step for size, step in zip(spectrogram.shape[-2:], self.unit, strict=True)]
        whole = F.pad(spectrogram[:, 0], (0, missing[1], 0, missing[0]))
        units = whole.unflatten(2, (-1, self.unit[1])).unflatten(1, (-1, self.unit[0]))
        return units.transpose(2, 3).flatten(3)
