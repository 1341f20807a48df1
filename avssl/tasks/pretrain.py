"""Pretraining: an audio-visual pair under a weighted sum of objectives."""

from torch import Tensor, nn

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.data.batch import Batch
from avssl.models.pair import AudioVisualPair
from avssl.objectives import Objective


class PretrainTask(nn.Module):
    """Augments a batch, embeds it, and applies the objectives.

    Args:
        pair: The model.
        objectives: (name, objective, weight) of each term.
        wave: Augmentation of waveforms (B, S).
        spectrogram: Augmentation of log-mel spectrograms (B, 1, F, T).
        video: Augmentation and crop of frames (B, 3, T, H, W) uint8.
    """

    def __init__(
        self,
        pair: AudioVisualPair,
        objectives: list[tuple[str, Objective, float]],
        wave: WaveAugment,
        spectrogram: SpectrogramAugment,
        video: VideoAugment,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.names = _unique([name for name, _, _ in objectives])
        self.objectives = nn.ModuleList(objective for _, objective, _ in objectives)
        self.weights = [weight for _, _, weight in objectives]
        self.wave, self.spectrogram, self.video = wave, spectrogram, video

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by objective, their sum is minimized, and scalars to log."""
        assert batch.audio is not None and batch.video is not None, "pretraining needs both modalities"
        spectrogram = self.spectrogram(self.pair.frontend(self.wave(batch.audio)))
        output = self.pair(spectrogram, self.video(batch.video))
        losses: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for name, objective, weight in zip(self.names, self.objectives, self.weights, strict=True):
            loss, details = objective(output)
            losses[name] = weight * loss
            report |= {f"{name}/{key}": value for key, value in details.items()}
        return losses, report


def _unique(names: list[str]) -> list[str]:
    """Numbers repeated names, so that two terms of one kind log two curves."""
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)]
