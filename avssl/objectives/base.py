"""The interface of an objective, what it may look at, and the registry that finds one by its name."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Shapes:
    """Sizes that objectives with layers, queues or banks of their own are built for.

    Attributes:
        joint: Width D of the joint embedding.
        audio: Width A of the audio features.
        video: Width V of the video features.
        clips: Rows of the training split; ``Step.index`` is below it.
        audio_stride: Mel bins and frames of the spectrogram per token of the audio encoder.
    """

    joint: int
    audio: int
    video: int
    clips: int
    audio_stride: tuple[int, int] = (16, 16)


@dataclass
class Embedding:
    """What one modality of B clips becomes.

    Attributes:
        joint: (B, D) projected embeddings, not normalized.
        features: (B, A) or (B, V) encoder features before the projection.
    """

    joint: Tensor
    features: Tensor


class Step(ABC):
    """One batch as objectives see it. What is asked for is computed at first, then shared by all objectives.

    A view is one draw of the augmentation: view 0 is everyone's, view 1 is a second one of the same clips.

    Attributes:
        index: (B,) int64 rows of the training split.
        labels: head -> (B,) int64 class, -1 where unlabelled.
        start: (B,) float64 second at which the clip starts in its file; on the CPU.
        seconds: Length of a clip.
    """

    index: Tensor
    labels: Mapping[str, Tensor]
    start: Tensor
    seconds: float

    @abstractmethod
    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Embedding:
        """The audio of the clips.

        Args:
            view: Which draw of the augmentation.
            teacher: By the momentum teacher, without gradient; only for objectives with ``needs_teacher``.
            patch_drop: Share of the spectrogram's units (one token of the encoder each) that are blanked.
        """

    @abstractmethod
    def video(self, view: int = 0, *, teacher: bool = False) -> Embedding:
        """The frames of the clips; see :meth:`audio`."""

    @abstractmethod
    def map_audio(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """``function(encoder, spectrogram (b, 1, F, T)) -> (b, ...)`` over all clips, (B, ...).

        For what needs a forward pass of its own; clips are taken in chunks where gradients are cached.
        """

    @abstractmethod
    def map_video(self, function: Callable[[nn.Module, Tensor], Tensor], view: int = 0) -> Tensor:
        """``function(encoder, frames (b, 3, T, H, W) in [0, 1]) -> (b, ...)`` over all clips, (B, ...)."""


class Objective(nn.Module, ABC):
    """A term of the pretraining loss; parameters and buffers of its own are trained, saved and resumed with the model.

    ``forward`` takes a :class:`Step` and returns the scalar loss and a report of detached scalars to log. Averaged over
    the processes, gradients are those of one process with the whole batch.

    Attributes:
        needs_teacher: Uses ``teacher=True``: the run then keeps an exponential moving average of the pair.
    """

    needs_teacher: ClassVar[bool] = False

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Objective":
        """Makes the objective from its options; one that needs sizes takes ``shapes`` first."""
        return cls(**options)

    @abstractmethod
    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report of one batch."""

    def after_step(self, step: int, max_steps: int) -> None:
        """Called after each optimizer step, of which ``step`` were taken: for teachers and schedules of its own."""


_OBJECTIVES: dict[str, type[Objective]] = {}


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: makes an objective available to ``objectives: [{name: ...}]``."""

    def decorate(objective: type[Objective]) -> type[Objective]:
        if name in _OBJECTIVES:
            raise ValueError(f"an objective named {name!r} is registered already: {_OBJECTIVES[name]}")
        _OBJECTIVES[name] = objective
        return objective

    return decorate


def create_objective(name: str, shapes: Shapes, **options: Any) -> Objective:
    """Builds the objective ``name`` with its keyword arguments.

    Raises:
        ValueError: for an unknown name or option, with the nearest known one.
    """
    if name not in _OBJECTIVES:
        near = difflib.get_close_matches(name, _OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"objectives: unknown name {name!r}{hint} Known: {', '.join(list_objectives())}")
    try:
        return _OBJECTIVES[name].build(shapes, **options)
    except TypeError as error:
        raise ValueError(f"objectives: {name}: {error}") from error


def list_objectives() -> dict[str, str]:
    """Names of all objectives with the first line of their documentation."""
    return {name: (cls.__doc__ or "").split("\n")[0] for name, cls in sorted(_OBJECTIVES.items())}
