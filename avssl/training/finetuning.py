"""Fine-tuning: a classifier under the losses of its heads, and further objectives beside them."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment, mixup
from avssl.augment.mixing import blend
from avssl.data.batch import Batch
from avssl.models.classifier import Classifier, Encoded
from avssl.models.projection import build_heads
from avssl.objectives import Objective, Step, WeightedObjectives, projections_of
from avssl.training.task import Task

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

    drawing = ("draw_audio", "draw_video")

    def __init__(
        self,
        classifier: Classifier,
        wave: WaveAugment,
        spectrogram: SpectrogramAugment,
        *,
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
        if self.masks and (spectrogram.config.spec_warp or objectives):
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
        given = self._given(batch)
        losses, report, encoded = self._classified(given)
        if len(self.objectives):
            inputs: dict[str, Tensor] = {modality: given[modality] for modality in self.classifier.modalities}
            terms, details = self.objectives(FinetuneStep(self, batch, inputs, encoded))
            losses |= terms
            report |= details
        return losses, report

    def prepare(self, batch: Batch) -> dict[str, Tensor] | None:
        """See :meth:`Task.prepare`; None beside objectives, which draw views of their own."""
        return None if len(self.objectives) else self._given(batch)

    def compute(self, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`Task.compute`."""
        losses, report, _ = self._classified(given)
        return losses, report

    def _given(self, batch: Batch) -> dict[str, Tensor]:
        """Inputs by modality, ``labels/HEAD`` and, where there are, ``mixed/HEAD``, ``share`` and ``valid``."""
        classifier = self.classifier
        inputs: dict[str, Tensor] = {modality: self.draw(modality, batch) for modality in classifier.modalities}
        mixed, share, valid = batch.mixed_labels, batch.mixed_share, classifier.valid_frames(batch)
        if self.training and self.mixup_alpha > 0:
            first, *others = inputs
            inputs[first], partner, share = mixup(inputs[first], self.mixup_alpha, self.mixup_probability)
            inputs |= {name: blend(inputs[name], partner, share) for name in others}
            mixed = {head: labels[partner] for head, labels in batch.labels.items()}
            valid = None if valid is None else torch.where(share < 1, torch.maximum(valid, valid[partner]), valid)
        given = inputs | {f"labels/{head}": labels for head, labels in batch.labels.items()}
        if share is not None:
            given |= {f"mixed/{head}": labels for head, labels in mixed.items()} | {"share": share}
        return given if valid is None else given | {"valid": valid}

    def _classified(self, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Encoded]:
        classifier = self.classifier
        encoded = classifier.encode(given.get("audio"), given.get("video"), given.get("valid"))
        logits = classifier.split(classifier.outputs(encoded.features))
        labels, mixed = (
            {head: given[f"{kind}/{head}"] for head in logits if f"{kind}/{head}" in given}
            for kind in ("labels", "mixed")
        )
        losses, report = self.head_loss(logits, labels, mixed, given.get("share"))
        return losses, report, encoded

    def draw(self, modality: str, batch: Batch) -> Tensor:
        """An augmented input of ``batch``: a spectrogram (B, 1, F, T), or frames (B, 3, T, H, W) in [0, 1]."""
        if modality == "audio":
            frontend = self.classifier.frontend
            assert batch.audio is not None and frontend is not None, "this classifier needs audio"
            # Where padding is masked, a shift must not carry sound into it, whatever stands there.
            samples = batch.samples if self.masks else frontend.sound_lengths(batch.samples)
            return self.draw_audio(batch.audio, samples)
        assert batch.video is not None and self.video is not None, "this classifier needs video and its augmentation"
        return self.draw_video(batch.video)

    def draw_audio(self, waveform: Tensor, samples: Tensor | None) -> Tensor:
        """Augmented spectrograms (B, 1, F, T) of ``waveform`` (B, S), of which ``samples`` (B,) are sound."""
        frontend = self.classifier.frontend
        assert frontend is not None
        return self.spectrogram(frontend(self.wave(waveform, samples), samples), inplace=True)

    def draw_video(self, frames: Tensor) -> Tensor:
        """Augmented ``frames`` (B, 3, T, H, W)."""
        assert self.video is not None
        return self.video(frames)

    def after_step(self, step: int, max_steps: int) -> None:
        """Lets objectives move what they keep."""
        self.objectives.after_step(step, max_steps)

    @property
    def frontend(self) -> nn.Module | None:
        """See :attr:`Task.frontend`."""
        return self.classifier.frontend

    @property
    def model(self) -> Classifier:
        """What is evaluated and exported."""
        return self.classifier


class FinetuneStep(Step):
    """A labelled batch as objectives see it: labels, the modalities that are fine-tuned, and no teacher.

    View 0 is what was classified.

    Args:
        task: The classifier, its projections and its augmentation.
        batch: The batch, on the device.
        inputs: The augmented input of each modality that is fine-tuned, as it was classified.
        encoded: What the encoders made of them.
    """

    def __init__(self, task: FinetuneTask, batch: Batch, inputs: dict[str, Tensor], encoded: Encoded) -> None:
        self.index, self.labels, self.start, self.seconds = batch.index, batch.labels, batch.start, task.clip_seconds
        self.file = batch.index
        self._task, self._batch = task, batch
        self._inputs = {(modality, 0): drawn for modality, drawn in inputs.items()}
        self._features = {("audio", 0): encoded.audio, ("video", 0): encoded.video}
        self._projected: dict[tuple[str, str, int], Tensor] = {}

    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Tensor:
        """See :meth:`Step.audio`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        self._check("audio", teacher or bool(patch_drop))
        return self._encoded("audio", view)

    def video(self, view: int = 0, *, teacher: bool = False) -> Tensor:
        """See :meth:`Step.video`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        self._check("video", teacher)
        return self._encoded("video", view)

    def project(
        self, objective: Objective, modality: str, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0
    ) -> Tensor:
        """See :meth:`Step.project`.

        Raises:
            ValueError: for what fine-tuning does not have.
        """
        key = (str(objective.projected_by), modality, view)
        head = self.head(objective, modality, teacher=teacher or bool(patch_drop))
        if key not in self._projected:
            self._projected[key] = head(self._encoded(modality, view))
        return self._projected[key]

    def head(self, objective: Objective, modality: str, *, teacher: bool = False) -> nn.Module:
        """See :meth:`Step.head`."""
        self._check(modality, teacher)
        return self._task.projections.get_submodule(f"{objective.projected_by}.{modality}")

    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_audio`."""
        self._check("audio")
        encoder = self._task.classifier.audio_encoder
        assert encoder is not None
        return function(encoder, self._input("audio", view))

    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_video`."""
        self._check("video")
        encoder = self._task.classifier.video_encoder
        assert encoder is not None
        return function(encoder, self._input("video", view))

    def _input(self, modality: str, view: int) -> Tensor:
        if (modality, view) not in self._inputs:
            self._inputs[modality, view] = self._task.draw(modality, self._batch)
        return self._inputs[modality, view]

    def _encoded(self, modality: str, view: int) -> Tensor:
        """Features (B, A) or (B, V) of a view."""
        features = self._features.get((modality, view))
        if features is None:
            model = self._task.classifier
            encode = model.encode_audio if modality == "audio" else model.encode_video
            features = self._features[modality, view] = encode(self._input(modality, view))
        return features

    def _check(self, modality: str, teacher: bool = False) -> None:
        if teacher:
            raise ValueError("objectives: one with a momentum teacher is for pretraining, not for fine-tuning")
        seen = self._task.classifier.modalities
        if modality not in seen:
            (other,) = seen
            raise ValueError(
                f"objectives: fine-tuning sees {other} only; set modality to both, or choose an objective of {other}, "
                f"for example by {{modality: {other}}}"
            )


class HeadLoss:
    """The loss of each head, by its labels: (B,) int64 classes, or (B, C) zeros and ones; -1 where unlabelled.

    Both kinds share one formula for the targets: with smoothing ``s``, ``(1 - s) t + s / C``, of which the sum over the
    classes stays 1 where a clip has one label (Szegedy et al. 2016).

    - One label: cross-entropy of the softmax.
    - Several labels: binary cross-entropy of the sigmoid, the mean over the classes.

    A head's loss is the mean over its labelled clips, times the weight of the head.

    Args:
        labels: Class names of each head.
        label_smoothing: ``s``, at least 0 and below 1.
        weights: Weight of the loss of a head, above 0; 1 where none is given.

    Raises:
        ValueError: an unknown head, or a weight or a smoothing out of its range.
    """

    def __init__(
        self,
        labels: Mapping[str, list[str]],
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: must be at least 0 and below 1, got {label_smoothing}")
        for head, weight in (weights or {}).items():
            if head not in labels:
                raise ValueError(f"head_weights: no head {head!r}; the heads that are trained: {', '.join(labels)}")
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"head_weights: {head}: must be above 0, got {weight}; data.heads tells which heads to train"
                )
        self.label_smoothing = label_smoothing
        self.weights = {head: 1.0 for head in labels} | dict(weights or {})

    def __call__(
        self,
        logits: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        mixed: Mapping[str, Tensor] | None = None,
        share: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by head, and ``HEAD/train_top1`` of the heads with one label.

        Args:
            logits: head -> (B, C).
            labels: head -> labels of the clips.
            mixed: head -> labels of the clips that mixup blended these with.
            share: (B,) each clip's own share of its blend; None without mixup.
        """
        losses, report = {}, {}
        for head, scores in logits.items():
            target = labels[head]
            loss, counted = self._by_clip(scores, target)
            if mixed is not None and share is not None:
                # A blend of a labelled and an unlabelled clip counts by the share whose label is known.
                other, other_counted = self._by_clip(scores, mixed[head])
                loss = share * loss + (1 - share) * other
                counted = share * counted + (1 - share) * other_counted
            losses[head] = self.weights[head] * loss.sum() / counted.sum().clamp_min(1)
            if target.ndim == 1:
                right = scores.detach().argmax(1) == target  # never where it is unlabelled
                report[f"{head}/train_top1"] = (right.sum() / (target >= 0).sum()).nan_to_num()
        return losses, report

    def _by_clip(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,), 0 where unlabelled, and (B,) float, 1 where labelled."""
        logits, smoothing = logits.float(), self.label_smoothing
        if target.ndim == 1:
            loss = F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=smoothing, reduction="none")
            return loss, (target >= 0).float()
        labelled = (target >= 0).all(dim=1)
        wanted = (1 - smoothing) * target.clamp_min(0) + smoothing / target.shape[1]
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        return torch.where(labelled, loss, 0), labelled.float()
