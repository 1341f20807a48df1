"""Fine-tuning: an audio classifier under cross-entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.augment import SpectrogramAugment, WaveAugment, mixup
from avssl.data.batch import Batch
from avssl.models.classifier import AudioClassifier
from avssl.tasks.base import Task


class FinetuneTask(Task):
    """Augments a batch, classifies it, and applies cross-entropy to every head.

    Args:
        classifier: The model.
        wave: Augmentation of waveforms (B, S).
        spectrogram: Augmentation of log-mel spectrograms (B, 1, F, T).
        mixup_alpha: Mixup's Beta parameter; 0 turns it off.
        label_smoothing: Label smoothing of the cross-entropy.
    """

    def __init__(
        self,
        classifier: AudioClassifier,
        wave: WaveAugment,
        spectrogram: SpectrogramAugment,
        mixup_alpha: float = 0.0,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.wave, self.spectrogram = wave, spectrogram
        self.mixup_alpha, self.label_smoothing = mixup_alpha, label_smoothing

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy by head, and top-1 on the (augmented, mixed) batch. Unlabelled items (-1) do not count."""
        assert batch.audio is not None, "fine-tuning needs audio"
        spectrogram = self.spectrogram(self.classifier.frontend(self.wave(batch.audio)))
        partner, weight = None, None
        if self.training and self.mixup_alpha > 0:
            spectrogram, partner, weight = mixup(spectrogram, self.mixup_alpha)
        losses, report = {}, {}
        for head, logits in self.classifier(spectrogram).items():
            target = batch.labels[head]
            loss = self._cross_entropy(logits, target)
            if partner is not None and weight is not None:
                loss = weight * loss + (1 - weight) * self._cross_entropy(logits, target[partner])
            labelled = target >= 0
            losses[head] = loss.sum() / labelled.sum().clamp_min(1)
            with torch.no_grad():
                report[f"{head}/train_top1"] = (logits.argmax(1) == target)[labelled].float().mean().nan_to_num()
        return losses, report

    @property
    def model(self) -> AudioClassifier:
        """What is evaluated and exported."""
        return self.classifier

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(), target, ignore_index=-1, label_smoothing=self.label_smoothing, reduction="none"
        )
