"""One fine-tuning batch as objectives see it: labels, the modalities that are fine-tuned, and no teacher."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from avssl.data.batch import Batch
from avssl.objectives import Objective, Step


@dataclass
class Side:
    """One modality of the batch.

    Attributes:
        draw: Makes an augmented input of the batch: a spectrogram (B, 1, F, T), or frames (B, 3, T, H, W) in [0, 1].
        encoder: What is fine-tuned.
        encode: Such an input -> features (B, A) or (B, V).
        heads: Projection heads, by the name of the projection.
        inputs: Inputs by view, as far as they were drawn.
        known: Features by view, as far as they were asked for.
        projected: Embeddings by projection and view, as far as they were asked for.
    """

    draw: Callable[[], Tensor]
    encoder: nn.Module
    encode: Callable[[Tensor], Tensor]
    heads: dict[str, nn.Module]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    known: dict[int, Tensor] = field(default_factory=dict)
    projected: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def first(self, drawn: Tensor, features: Tensor) -> None:
        """Takes over view 0, which the classifier has seen already, with its features."""
        self.inputs[0], self.known[0] = drawn, features

    def input(self, view: int) -> Tensor:
        """The input of ``view``."""
        if view not in self.inputs:
            self.inputs[view] = self.draw()
        return self.inputs[view]

    def features(self, view: int) -> Tensor:
        """Features (B, A) or (B, V) of ``view``."""
        if view not in self.known:
            self.known[view] = self.encode(self.input(view))
        return self.known[view]

    def embedding(self, name: str, view: int) -> Tensor:
        """Embeddings (B, D) of ``view`` by the projection ``name``."""
        if (name, view) not in self.projected:
            self.projected[name, view] = self.heads[name](self.features(view))
        return self.projected[name, view]


class FinetuneStep(Step):
    """A labelled batch under fine-tuning.

    Args:
        batch: The batch.
        seconds: Length of a clip.
        sides: The modalities that are fine-tuned, by name.
    """

    def __init__(self, batch: Batch, seconds: float, sides: dict[str, Side]) -> None:
        self.index, self.labels, self.start, self.seconds = batch.index, batch.labels, batch.start, seconds
        self.file = batch.index
        self._sides = sides

    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Tensor:
        """See :meth:`Step.audio`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        return self._side("audio", teacher or bool(patch_drop)).features(view)

    def video(self, view: int = 0, *, teacher: bool = False) -> Tensor:
        """See :meth:`Step.video`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        return self._side("video", teacher).features(view)

    def project(
        self, objective: Objective, modality: str, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0
    ) -> Tensor:
        """See :meth:`Step.project`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        return self._side(modality, teacher or bool(patch_drop)).embedding(str(objective.projected_by), view)

    def head(self, objective: Objective, modality: str, *, teacher: bool = False) -> nn.Module:
        """See :meth:`Step.head`."""
        return self._side(modality, teacher).heads[str(objective.projected_by)]

    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_audio`."""
        side = self._side("audio")
        return function(side.encoder, side.input(view))

    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_video`."""
        side = self._side("video")
        return function(side.encoder, side.input(view))

    def _side(self, name: str, teacher: bool = False) -> Side:
        if teacher:
            raise ValueError("objectives: one with a momentum teacher is for pretraining, not for fine-tuning")
        if name not in self._sides:
            (other,) = self._sides
            raise ValueError(
                f"objectives: fine-tuning sees {other} only; set modality to both, or choose an objective of {other}, "
                f"for example by {{modality: {other}}}"
            )
        return self._sides[name]
