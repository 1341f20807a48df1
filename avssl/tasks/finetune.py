"""Fine-tuning: a classifier under the losses of its heads, and further objectives beside them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment, mixup
from avssl.augment.mixing import blend
from avssl.data.batch import Batch
from avssl.models.classifier import Classifier, Encoded
from avssl.models.projection import build_heads
from avssl.objectives import Objective, WeightedObjectives, projections_of
from avssl.tasks.base import Task
from avssl.tasks.finetune_step import FinetuneStep, Side
from avssl.tasks.heads import HeadLoss

# Width of the projections of further objectives that have none of their own (SupCon, Khosla et al. 2020).
JOINT = 128


class FinetuneTask(Task):
    """Augments a batch, classifies it, and applies its loss to every head.

    Args:
        classifier: The model.
        wave: Augmentation of waveforms (B, S).
        spectrogram: Augmentation of log-mel spectrograms (B, 1, F, T).
        mixup_alpha: Beta parameter of mixup within the batch; 0 turns it off. Sound and picture of a clip are mixed
            alike. Batches whose clips were blended when they were read say so themselves.
        mixup_probability: That a clip is mixed within the batch.
        label_smoothing: Label smoothing; see :class:`HeadLoss`.
        objectives: (name, objective, weight) of terms beside the heads' losses, on projections of the features.
        clip_seconds: Length of a clip.
        video: Augmentation of frames (B, 3, T, H, W) uint8; a classifier that sees needs it.
        head_weights: Weight of the loss of a head; 1 where none is given.

    Raises:
        ValueError: mixup beside objectives, because a mixed clip has no one class to contrast; a projection with
            ``time_bins``; or weights or a smoothing that :class:`HeadLoss` refuses.
    """

    def __init__(
        self,
        classifier: Classifier,
        wave: WaveAugment,
        spectrogram: SpectrogramAugment,
        mixup_alpha: float = 0.0,
        label_smoothing: float = 0.1,
        objectives: Sequence[tuple[str, Objective, float]] = (),
        clip_seconds: float = 1.0,
        video: VideoAugment | None = None,
        head_weights: Mapping[str, float] | None = None,
        mixup_probability: float = 1.0,
    ) -> None:
        super().__init__()
        if mixup_alpha < 0 or (mixup_alpha > 0 and objectives):
            raise ValueError(f"augment.mixup.alpha: must be at least 0, and 0 beside objectives, got {mixup_alpha}")
        encoder = classifier.audio_encoder
        self.masks = encoder is not None and bool(encoder.config.get("mask_padding"))
        if self.masks and (spectrogram.warp or objectives):
            raise ValueError(
                "audio.options: mask_padding needs to know where a sound ends: turn augment.spec_warp off, and leave "
                "objectives out"
            )
        self.classifier = classifier
        self.wave, self.spectrogram, self.video = wave, spectrogram, video
        self.mixup_alpha, self.mixup_probability = mixup_alpha, mixup_probability
        self.head_loss = HeadLoss(classifier.labels, label_smoothing, head_weights)
        self.objectives = WeightedObjectives(objectives)
        self.clip_seconds = clip_seconds
        encoders = {"audio": classifier.audio_encoder, "video": classifier.video_encoder}
        inputs = {name: encoder.num_features for name, encoder in encoders.items() if encoder is not None}
        projections = projections_of(objectives)
        for name, projection in projections.items():
            if projection.time_bins not in (None, 1):
                raise ValueError(f"objectives: {name}: projection.time_bins is for pretraining; leave it out")
        self.projections = build_heads(projections, inputs)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by head, and top-1 on the (augmented, mixed) batch. Unlabelled items (-1) do not count."""
        draws = self._draws(batch)
        drawn = {name: draw() for name, draw in draws.items()}
        mixed, share, valid = batch.mixed_labels, batch.mixed_share, self.classifier.valid_frames(batch)
        if self.training and self.mixup_alpha > 0:
            first, *others = drawn
            drawn[first], partner, share = mixup(drawn[first], self.mixup_alpha, self.mixup_probability)
            drawn |= {name: blend(drawn[name], partner, share) for name in others}
            mixed = {head: labels[partner] for head, labels in batch.labels.items()}
            valid = None if valid is None else torch.where(share < 1, torch.maximum(valid, valid[partner]), valid)
        encoded = self.classifier.encode(drawn.get("audio"), drawn.get("video"), valid)
        logits = self.classifier.split(self.classifier.outputs(encoded.features))
        losses, report = self.head_loss(logits, batch.labels, mixed, share)
        if len(self.objectives):
            sides = self._sides(draws, drawn, encoded)
            terms, details = self.objectives(FinetuneStep(batch, self.clip_seconds, sides))
            losses |= terms
            report |= details
        return losses, report

    def after_step(self, step: int, max_steps: int) -> None:
        """Lets objectives move what they keep."""
        self.objectives.after_step(step, max_steps)

    def _draws(self, batch: Batch) -> dict[str, Callable[[], Tensor]]:
        """What makes an augmented input of ``batch``, by the modalities of the classifier."""
        draws: dict[str, Callable[[], Tensor]] = {}
        audio, frames, frontend, augment = batch.audio, batch.video, self.classifier.frontend, self.video
        if frontend is not None:
            assert audio is not None, "this classifier needs audio"
            # Where padding is masked, a shift must not carry sound into it, whatever stands there.
            samples = batch.samples if self.masks else frontend.told(batch.samples)
            draws["audio"] = lambda: self.spectrogram(frontend(self.wave(audio, samples), samples), inplace=True)
        if self.classifier.video_encoder is not None:
            assert frames is not None and augment is not None, "this classifier needs video and its augmentation"
            draws["video"] = lambda: augment(frames)
        return draws

    def _sides(
        self, draws: dict[str, Callable[[], Tensor]], drawn: dict[str, Tensor], encoded: Encoded
    ) -> dict[str, Side]:
        """The modalities for the objectives, with the view that was classified."""
        model, sides = self.classifier, {}
        known = {
            "audio": (model.audio_encoder, model.encode_audio, encoded.audio),
            "video": (model.video_encoder, model.encode_video, encoded.video),
        }
        for name, draw in draws.items():
            encoder, encode, features = known[name]
            assert encoder is not None and features is not None
            heads = {each: self.projections.get_submodule(f"{each}.{name}") for each in self.projections}
            sides[name] = Side(draw, encoder, encode, heads)
            sides[name].first(drawn[name], features)
        return sides

    @property
    def model(self) -> Classifier:
        """What is evaluated and exported."""
        return self.classifier
