"""The interface of an objective, what it may look at, and the registry that finds one by its name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from avssl.models.projection import Projection
from avssl.plugins import Registry


@dataclass(frozen=True)
class Shapes:
    """Sizes that objectives with layers, queues or banks of their own are built for.

    Attributes:
        joint: Width D of the objective's projection.
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


class Step(ABC):
    """One batch as objectives see it. What is asked for is computed at first, then shared by all objectives.

    A view is one draw of the augmentation: view 0 is everyone's, view 1 is a second one of the same clips.

    Attributes:
        index: (B,) int64 rows of the training split.
        file: (B,) int64 numbers of the media files that the clips are of: several rows may be segments of one.
        labels: head -> (B,) int64 class, -1 where unlabelled.
        start: (B,) float64 second at which the clip starts in its file; on the CPU.
        seconds: Length of a clip.
    """

    index: Tensor
    file: Tensor
    labels: Mapping[str, Tensor]
    start: Tensor
    seconds: float

    @abstractmethod
    def audio(self, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0) -> Tensor:
        """Features (B, A) of the audio of the clips: the encoder's, before any projection.

        Args:
            view: Which draw of the augmentation.
            teacher: By the momentum teacher, without gradient; only for objectives with ``needs_teacher``.
            patch_drop: Share of the spectrogram's units (one token of the encoder each) that are blanked.
        """

    @abstractmethod
    def video(self, view: int = 0, *, teacher: bool = False) -> Tensor:
        """Features (B, V) of the frames of the clips; see :meth:`audio`."""

    @abstractmethod
    def project(
        self, objective: "Objective", modality: str, view: int = 0, *, teacher: bool = False, patch_drop: float = 0.0
    ) -> Tensor:
        """Embeddings (B, D) of "audio" or "video" by the projection of ``objective``, not normalized.

        Args:
            objective: Whose projection: its own, or the one that it shares.
            modality: The other one is not computed.
            view: See :meth:`audio`.
            teacher: See :meth:`audio`; the projection is the teacher's, too.
            patch_drop: See :meth:`audio`; for audio only.
        """

    @abstractmethod
    def head(self, objective: "Objective", modality: str, *, teacher: bool = False) -> nn.Module:
        """The projection of ``objective`` as a module, (B, ..., C) -> (B, ..., D): for tokens that the objective takes
        from an encoder itself. For those of the audio, ``Projection.time_bins`` must be 1."""

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

    What it compares are embeddings by a projection of its own, one head for each modality, or by the one of another
    term that the config names: ``step.project(self, "audio")``. The class says what projection it needs; the config may
    change its settings. Projections are parts of the pair, which is saved, averaged, followed by the teacher and
    exported as a whole.

    Attributes:
        projection: What it needs: of the class the default, whose ``dim`` may be None, of an objective that is built
            the settled one. None for an objective on features or tokens alone.
        retrieves: Contrasts the audio of a clip with the video of others: embeddings by its projection are what
            retrieval compares.
        trains: Modalities whose head of its projection gets a gradient from it; an option ``modality`` narrows them.
        needs_teacher: Uses ``teacher=True``: the run then keeps an exponential moving average of the pair.
        teacher_momentum: Momentum of that teacher at the first step and at the last, where the config gives none.
        projected_by: Name of its projection in the pair; None for an objective without.
    """

    projection: Projection | None = Projection()
    retrieves: ClassVar[bool] = False
    trains: ClassVar[tuple[str, ...]] = ("audio", "video")
    needs_teacher: ClassVar[bool] = False
    teacher_momentum: ClassVar[tuple[float, float]] = (0.996, 1.0)
    projected_by: str | None = None

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Objective":
        """Makes the objective from its options; one that needs sizes takes ``shapes`` first."""
        return cls(**options)

    @abstractmethod
    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report of one batch."""

    def after_step(self, step: int, max_steps: int) -> None:
        """Called after each optimizer step, of which ``step`` were taken: for teachers and schedules of its own."""


OBJECTIVES = Registry[type[Objective]]("objectives", "objective")


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: makes an objective available to ``objectives: [{name: ...}]``.

    Raises:
        ValueError: the name is taken.
    """

    def register(objective: type[Objective]) -> type[Objective]:
        OBJECTIVES.add(name, objective, objective)
        return objective

    return register


def create_objective(name: str, shapes: Shapes, **options: Any) -> Objective:
    """Builds the objective ``name`` with its keyword arguments; its projection has its name, and is as
    wide as ``shapes.joint``.

    Raises:
        ValueError: for an unknown name or option.
    """
    cls = OBJECTIVES.get(name)
    try:
        objective = cls.build(shapes, **options)
    except TypeError as error:
        raise ValueError(f"objectives: {name}: {error}") from error
    if cls.projection is not None:
        objective.projected_by, objective.projection = name, replace(cls.projection, dim=shapes.joint)
    return objective


def list_objectives() -> dict[str, str]:
    """Names of all objectives with the first line of their documentation."""
    return {name: (OBJECTIVES.get(name).__doc__ or "").split("\n")[0] for name in sorted(OBJECTIVES)}
