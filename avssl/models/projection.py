"""Projection heads: what maps features of an encoder to the embedding that an objective compares."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn


@dataclass(frozen=True)
class Projection:
    """An MLP whose hidden layers are linear, batch norm and ReLU.

    The defaults are SimCLR's (Chen et al. 2020). The final batch norm matters to contrast: features of fresh encoders
    are nearly the same for all clips, and without it training stayed at chance for hundreds of steps. An objective on
    variances or covariances must not have it: it holds every variance at 1, so that no gradient is left.

    Attributes:
        layers: Linear layers.
        width: Width of the hidden ones.
        dim: Width D of the embedding; None is the run's ``embedding_dim``.
        norm: Batch norm after the last layer.
        time_bins: Equal parts of a clip that the audio projection tells apart; None is the run's ``time_bins``.
    """

    layers: int = 2
    width: int = 512
    dim: int | None = None
    norm: bool = True
    time_bins: int | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "width", "dim", "time_bins"):
            value = getattr(self, name)
            if value is None and name in ("dim", "time_bins"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"projection: {name} must be a number of at least 1, got {value!r}")
        if not isinstance(self.norm, bool):
            raise ValueError(f"projection: norm must be true or false, got {self.norm!r}")

    def build(self, inputs: int) -> "Head":
        """The head for features of ``inputs`` channels.

        Raises:
            ValueError: ``dim`` is not settled.
        """
        if self.dim is None:
            raise ValueError("projection: dim is not given")
        widths = [inputs, *[self.width] * (self.layers - 1)]
        hidden = [(before, after, nn.BatchNorm1d(after), nn.ReLU()) for before, after in pairwise(widths)]
        # No bias: a batch norm takes it away, and the published heads without a final norm have none.
        last = (widths[-1], self.dim, nn.BatchNorm1d(self.dim) if self.norm else None, None, False)
        return Head([*hidden, last])


class Head(ProjectionHead):
    """The layers of a :class:`Projection`, for features (B, C) or tokens (B, ..., C): the batch norms see them all."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) -> (B, ..., D)."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def build_heads(projections: Mapping[str, Projection], inputs: Mapping[str, int], time_bins: int = 1) -> nn.ModuleDict:
    """A head by projection and modality: ``heads["infonce"]["audio"]``.

    Args:
        projections: What is projected to, by name.
        inputs: Channels of the features, by modality.
        time_bins: Of projections that have none of their own.
    """

    def width(projection: Projection, modality: str) -> int:
        return inputs[modality] * ((projection.time_bins or time_bins) if modality == "audio" else 1)

    return nn.ModuleDict(
        {
            name: nn.ModuleDict({modality: projection.build(width(projection, modality)) for modality in inputs})
            for name, projection in projections.items()
        }
    )
