"""One fine-tuning batch as objectives see it: audio and labels, no video and no teacher."""

from collections.abc import Callable

from torch import Tensor, nn

import mast
from avssl.data.batch import Batch
from avssl.objectives import Embedding, Step


class AudioStep(Step):
    """A labelled batch of audio.

    Args:
        batch: The batch.
        seconds: Length of a clip.
        draw: Makes an augmented spectrogram (B, 1, F, T) of the batch.
        encoder: What is fine-tuned.
        projection: Features (B, A) -> joint embedding (B, D).
        spectrogram: View 0.
        features: (B, A) encoder features of view 0.
    """

    def __init__(
        self,
        batch: Batch,
        seconds: float,
        draw: Callable[[], Tensor],
        encoder: mast.SpectrogramModel,
        projection: nn.Module,
        spectrogram: Tensor,
        features: Tensor,
    ) -> None:
        self.index, self.labels, self.start, self.seconds = batch.index, batch.labels, batch.start, seconds
        self._draw, self._encoder, self._projection = draw, encoder, projection
        self._views = {0: spectrogram}
        self._known = {0: Embedding(projection(features), features)}

    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Embedding:
        """See :meth:`Step.audio`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        if teacher or patch_drop:
            raise ValueError("objectives: one with a momentum teacher is for pretraining, not for fine-tuning")
        if view not in self._known:
            features = self._encoder.forward_head(self._encoder.forward_features(self._view(view)), pre_logits=True)
            self._known[view] = Embedding(self._projection(features), features)
        return self._known[view]

    def video(self, view: int = 0, *, teacher: bool = False) -> Embedding:
        """Raises ValueError: there is no video."""
        raise ValueError("objectives: fine-tuning sees audio only; give {modality: audio} or another objective")

    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_audio`."""
        return function(self._encoder, self._view(view))

    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """Raises ValueError: there is no video."""
        return self.video().joint

    def _view(self, view: int) -> Tensor:
        if view not in self._views:
            self._views[view] = self._draw()
        return self._views[view]
