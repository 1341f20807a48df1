"""Pretraining: an audio-visual pair under a weighted sum of objectives, and what these ask of a batch.

``PretrainTask`` makes a ``PretrainStep`` of each batch and hands it to the objectives. Each view, pass through an
encoder and projection is computed when an objective first asks for it, at most once, in chunks if need be.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment, drop_patches
from avssl.data.batch import Batch
from avssl.evaluation.diagnostics import diagnose
from avssl.models.blocks import batch_norms_still
from avssl.models.pair import AudioVisualPair
from avssl.objectives import Objective, Step, WeightedObjectives
from avssl.objectives.banks import follow
from avssl.training.task import Task


class PretrainTask(Task):
    """Augments a batch, embeds it, and applies the objectives.

    Where an objective needs it, a momentum teacher follows the pair: after each optimizer step its weights are
    ``m * teacher + (1 - m) * student``, with m on a cosine between two values, by default those of the
    objective's paper.

    Args:
        pair: The model.
        objectives: (name, objective, weight) of each term.
        wave: Augmentation of waveforms (B, S).
        spectrogram: Augmentation of log-mel spectrograms (B, 1, F, T).
        video: Augmentation of frames (B, 3, T, H, W) uint8; crops them.
        clip_seconds: Length of a clip.
        files: (N,) int64, the number of the media file of each row of the training split; None: each has its own.
        chunk: Clips encoded at a time, for batches beyond memory; None encodes all at once.
        teacher_momentum: Momentum of the teacher at the beginning; None is the objectives' own.
        diagnose_every: Steps between diagnostics of the embeddings in the report: as often as it is logged.
    """

    drawing = ("draw_audio", "draw_video")

    def __init__(
        self,
        pair: AudioVisualPair,
        objectives: Sequence[tuple[str, Objective, float]],
        *,
        wave: WaveAugment,
        spectrogram: SpectrogramAugment,
        video: VideoAugment,
        clip_seconds: float = 1.0,
        files: Tensor | None = None,
        chunk: int | None = None,
        teacher_momentum: float | None = None,
        diagnose_every: int = 1,
    ) -> None:
        super().__init__()
        if teacher_momentum is not None and not 0 <= teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum: must lie in [0, 1], got {teacher_momentum}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"optim.chunk: must be at least 1, got {chunk}")
        if diagnose_every < 1:
            raise ValueError(f"log.every: must be at least 1, got {diagnose_every}")
        for name, objective, _ in objectives:
            if objective.projected_by is not None and objective.projected_by not in pair.projections:
                raise ValueError(
                    f"objectives: {name} compares the projection {objective.projected_by}, which the pair has not; it "
                    f"has {', '.join(pair.projections)}"
                )
        self.pair = pair
        self.objectives = WeightedObjectives(objectives)
        self.wave, self.spectrogram, self.video = wave, spectrogram, video
        self.clip_seconds, self.chunk = clip_seconds, chunk
        self.files: Tensor | None
        self.register_buffer("files", files, persistent=False)
        self.teacher_momentum = self.objectives.teacher_momentum(teacher_momentum)
        self.diagnose_every, self.diagnosing = diagnose_every, diagnose_every == 1
        self.teacher: AudioVisualPair | None = None
        if self.objectives.need_teacher:
            self.teacher = copy.deepcopy(pair).requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by objective, whose sum is minimized, and scalars to log."""
        step = PretrainStep(self, batch)
        losses, report = self.objectives(step)
        if self.diagnosing:
            (audio, audio_features), (video, video_features) = step.known("audio"), step.known("video")
            numbers = diagnose(audio, video, audio_features, video_features)  # of this process's view 0
            report |= {f"diagnostics/{name}": value for name, value in numbers.items()}
        return losses, report

    def draw_audio(self, waveform: Tensor, samples: Tensor | None) -> Tensor:
        """Augmented spectrograms (B, 1, F, T) of ``waveform`` (B, S), of which ``samples`` (B,) are sound."""
        return self.spectrogram(self.pair.frontend(self.wave(waveform, samples), samples), inplace=True)

    def draw_video(self, frames: Tensor) -> Tensor:
        """Augmented ``frames`` (B, 3, T, H, W)."""
        return self.video(frames)

    @property
    def frontend(self) -> nn.Module:
        """See :attr:`Task.frontend`."""
        return self.pair.frontend

    @property
    def model(self) -> AudioVisualPair:
        """What is evaluated and exported."""
        return self.pair

    def before_step(self, step: int, max_steps: int) -> None:
        """Settles whether the step after ``step`` is diagnosed."""
        self.diagnosing = (step + 1) % self.diagnose_every == 0 or step + 1 == max_steps

    def after_step(self, step: int, max_steps: int) -> None:
        """Moves the teacher and lets objectives move what they keep; called after each optimizer step."""
        if self.teacher is not None:
            follow(self.teacher.parameters(), self.pair.parameters(), step, max_steps, *self.teacher_momentum)
        self.objectives.after_step(step, max_steps)


class PretrainStep(Step):
    """A batch under an audio-visual pair.

    With ``task.chunk`` the encoders see that many clips at a time and keep none of their activations: the backward pass
    computes them again, chunk by chunk (gradient caching, Gao et al. 2021). Projections and objectives see the whole
    batch, so the contrast and its gradients are the big batch's at the memory of a small one. Batch norm within an
    encoder (none is in MAST, MViT and Swin) has its statistics over a chunk.

    Args:
        task: The student, its teacher, the augmentation, which is drawn anew for every view, and the chunk.
        batch: Clips with audio and video, on the device.
    """

    def __init__(self, task: PretrainTask, batch: Batch) -> None:
        assert batch.audio is not None and batch.video is not None, "pretraining needs both modalities"
        self.index, self.labels, self.start, self.seconds = batch.index, batch.labels, batch.start, task.clip_seconds
        self.file = batch.index if task.files is None else task.files[batch.index]
        self._task, self._waveform, self._frames = task, batch.audio, batch.video
        self._samples = task.pair.frontend.sound_lengths(batch.samples)
        size = batch.size
        self._chunk = min(task.chunk or size, size)
        # Every view is drawn from a seed of its own: student, teacher and a second computation see the same.
        self._seed = int(torch.randint(2**62, ()).item())
        device = batch.audio.device.type
        self._modes = torch.is_grad_enabled(), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._known: dict[Any, Any] = {}

    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Tensor:
        """See :meth:`Step.audio`."""
        return self._audio_by_time(view, teacher, patch_drop).mean(dim=2)

    def video(self, view: int = 0, *, teacher: bool = False) -> Tensor:
        """See :meth:`Step.video`."""
        key = ("video", view, teacher)
        if key not in self._known:
            with self._as_at_first(teacher):
                self._known[key] = self._in_chunks(self._encode_video, self._pair(teacher), view)
        return self._known[key]

    def project(
        self, objective: Objective, modality: str, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0
    ) -> Tensor:
        """See :meth:`Step.project`."""
        name = str(objective.projected_by)
        key = ("projected", name, modality, view, teacher, patch_drop)
        if key not in self._known:
            pair = self._pair(teacher)
            with self._as_at_first(teacher):
                if modality == "audio":
                    self._known[key] = pair.project_audio(self._audio_by_time(view, teacher, patch_drop), name)
                else:
                    self._known[key] = pair.project_video(self.video(view, teacher=teacher), name)
        return self._known[key]

    def head(self, objective: Objective, modality: str, *, teacher: bool = False) -> nn.Module:
        """See :meth:`Step.head`."""
        return self._pair(teacher).head(str(objective.projected_by), modality)

    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_audio`."""
        return self._in_chunks(self._map_audio, function, view)

    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """See :meth:`Step.map_video`."""
        return self._in_chunks(self._map_video, function, view)

    def known(self, modality: str) -> tuple[Tensor | None, Tensor | None]:
        """The student's embeddings of view 0 for retrieval, and its features, each where an objective asked for it."""
        by_time, features = self._known.get(("by_time", 0, False, 0.0)), self._known.get(("video", 0, False))
        if modality == "audio":
            features = None if by_time is None else by_time.mean(dim=2)
        retrieval = self._task.pair.retrieval
        return self._known.get(("projected", retrieval, modality, 0, False, 0.0)), features

    def _audio_by_time(self, view: int, teacher: bool, patch_drop: float) -> Tensor:
        """What the audio heads take; see :meth:`AudioVisualPair.encode_audio`."""
        key = ("by_time", view, teacher, patch_drop)
        if key not in self._known:
            with self._as_at_first(teacher):
                self._known[key] = self._in_chunks(self._encode_audio, self._pair(teacher), view, patch_drop)
        return self._known[key]

    def _pair(self, teacher: bool) -> AudioVisualPair:
        if not teacher:
            return self._task.pair
        if self._task.teacher is None:
            raise RuntimeError("an objective that uses the momentum teacher must set needs_teacher = True")
        return self._task.teacher

    @contextmanager
    def _as_at_first(self, teacher: bool) -> Iterator[None]:
        """Gradients and precision as where the step began: an objective that asks within ``no_grad``, say for hard
        negatives, would else leave the others a result without gradient."""
        gradient, mixed, dtype = self._modes
        precision = torch.autocast(self._waveform.device.type, enabled=mixed, dtype=dtype)
        with torch.set_grad_enabled(gradient and not teacher), precision:
            yield

    def _in_chunks(self, encode: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """``encode(rows, *arguments)`` of all rows, one chunk after the other."""
        size = len(self._waveform)
        chunks = [slice(first, min(first + self._chunk, size)) for first in range(0, size, self._chunk)]
        if len(chunks) == 1:
            return encode(chunks[0], *arguments)
        if not torch.is_grad_enabled():
            return torch.cat([encode(rows, *arguments) for rows in chunks])
        again: dict[str, Any] = {"use_reentrant": False, "context_fn": self._computed_again}
        return torch.cat([checkpoint(encode, rows, *arguments, **again) for rows in chunks])

    def _computed_again(self) -> tuple[Any, Any]:
        """Contexts of the first computation and of the one in the backward pass, which updates no batch norm anew."""
        return nullcontext(), batch_norms_still(self._task.pair)

    def _encode_audio(self, rows: slice, pair: AudioVisualPair, view: int, patch_drop: float) -> Tensor:
        spectrogram = self._spectrogram(rows, view)
        if patch_drop:
            with self._drawing(rows, view, salt=2):
                spectrogram = drop_patches(spectrogram, patch_drop, pair.audio.stride)
        return pair.encode_audio(spectrogram)

    def _encode_video(self, rows: slice, pair: AudioVisualPair, view: int) -> Tensor:
        return pair.video(self._clip(rows, view))

    def _map_audio(self, rows: slice, function: Callable[[nn.Module, Tensor], Tensor], view: int) -> Tensor:
        return function(self._task.pair.audio, self._spectrogram(rows, view))

    def _map_video(self, rows: slice, function: Callable[[nn.Module, Tensor], Tensor], view: int) -> Tensor:
        return function(self._task.pair.video, self._clip(rows, view))

    def _spectrogram(self, rows: slice, view: int) -> Tensor:
        """Augmented spectrograms of ``rows``: kept when the batch is one chunk, else made again when needed."""
        made = self._known.get(("spectrogram", view))
        if made is None:
            task, samples = self._task, None if self._samples is None else self._samples[rows]
            with self._drawing(rows, view, salt=0), torch.no_grad():
                made = task.draw_audio(self._waveform[rows], samples)
            self._keep(("spectrogram", view), made)
        return made

    def _clip(self, rows: slice, view: int) -> Tensor:
        """Augmented frames of ``rows``; see :meth:`_spectrogram`."""
        made = self._known.get(("frames", view))
        if made is None:
            with self._drawing(rows, view, salt=1), torch.no_grad():
                made = self._task.draw_video(self._frames[rows])
            self._keep(("frames", view), made)
        return made

    def _keep(self, key: tuple[str, int], made: Tensor) -> None:
        if self._chunk == len(self._waveform):
            self._known[key] = made

    @contextmanager
    def _drawing(self, rows: slice, view: int, salt: int) -> Iterator[None]:
        """Random numbers of the step, the view and the chunk alone; the generators are left as they were."""
        device = self._waveform.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((self._seed + 1_000_003 * rows.start + 101 * view + salt) % 2**63)
            yield
