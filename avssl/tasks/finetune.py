"""Fine-tuning: an audio classifier under cross-entropy, and further objectives beside it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.augment import SpectrogramAugment, WaveAugment, mixup
from avssl.data.batch import Batch
from avssl.models.classifier import AudioClassifier
from avssl.models.pair import projection_head
from avssl.objectives import Objective, WeightedObjectives
from avssl.tasks.audio_step import AudioStep
from avssl.tasks.base import Task

# Width of the embedding that further objectives compare (SupCon, Khosla et al. 2020).
JOINT = 128


class FinetuneTask(Task):
    """Augments a batch, classifies it, and applies cross-entropy to every head.

    Args:
        classifier: The model.
        wave: Augmentation of waveforms (B, S).
        spectrogram: Augmentation of log-mel spectrograms (B, 1, F, T).
        mixup_alpha: Mixup's Beta parameter; 0 turns it off.
        label_smoothing: Label smoothing of the cross-entropy.
        objectives: (name, objective, weight) of terms beside the cross-entropy, on a projection of the features; they
            are built for ``Shapes`` whose joint width is ``JOINT``.
        clip_seconds: Length of a clip.

    Raises:
        ValueError: mixup beside objectives: a mixed clip has no one class to contrast.
    """

    def __init__(
        self,
        classifier: AudioClassifier,
        wave: WaveAugment,
        spectrogram: SpectrogramAugment,
        mixup_alpha: float = 0.0,
        label_smoothing: float = 0.1,
        objectives: Sequence[tuple[str, Objective, float]] = (),
        clip_seconds: float = 1.0,
    ) -> None:
        super().__init__()
        if mixup_alpha < 0 or (mixup_alpha > 0 and objectives):
            raise ValueError(f"augment.mixup: must be at least 0, and 0 beside objectives, got {mixup_alpha}")
        self.classifier = classifier
        self.wave, self.spectrogram = wave, spectrogram
        self.mixup_alpha, self.label_smoothing = mixup_alpha, label_smoothing
        self.objectives = WeightedObjectives(objectives)
        self.clip_seconds = clip_seconds
        self.projection = projection_head(classifier.encoder.num_features, JOINT) if objectives else None

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy by head, and top-1 on the (augmented, mixed) batch. Unlabelled items (-1) do not count."""
        audio = batch.audio
        assert audio is not None, "fine-tuning needs audio"
        spectrogram = self._draw(audio)
        partner, weight = None, None
        if self.training and self.mixup_alpha > 0:
            spectrogram, partner, weight = mixup(spectrogram, self.mixup_alpha)
        losses: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        encoder = self.classifier.encoder
        features = encoder.forward_head(encoder.forward_features(spectrogram), pre_logits=True)
        for head, logits in self.classifier.split(encoder.head(features)).items():
            target = batch.labels[head]
            loss = self._cross_entropy(logits, target)
            if partner is not None and weight is not None:
                loss = weight * loss + (1 - weight) * self._cross_entropy(logits, target[partner])
            labelled = target >= 0
            losses[head] = loss.sum() / labelled.sum().clamp_min(1)
            with torch.no_grad():
                report[f"{head}/train_top1"] = (logits.argmax(1) == target)[labelled].float().mean().nan_to_num()
        if self.projection is not None:
            step = AudioStep(
                batch, self.clip_seconds, lambda: self._draw(audio), encoder, self.projection, spectrogram, features
            )
            terms, details = self.objectives(step)
            losses |= terms
            report |= details
        return losses, report

    def after_step(self, step: int, max_steps: int) -> None:
        """Lets objectives move what they keep."""
        self.objectives.after_step(step, max_steps)

    def _draw(self, waveform: Tensor) -> Tensor:
        return self.spectrogram(self.classifier.frontend(self.wave(waveform)))

    @property
    def model(self) -> AudioClassifier:
        """What is evaluated and exported."""
        return self.classifier

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(), target, ignore_index=-1, label_smoothing=self.label_smoothing, reduction="none"
        )
