"""The interface of an objective and the registry that finds one by its name."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class PairOutput:
    """What the audio-visual pair makes of a batch of B clips.

    Attributes:
        audio: (B, D) projected audio embeddings, not normalized.
        video: (B, D) projected video embeddings, not normalized; row i belongs to the same clip as ``audio[i]``.
        audio_features: (B, A) audio encoder features before the projection.
        video_features: (B, V) video encoder features before the projection.
    """

    audio: Tensor
    video: Tensor
    audio_features: Tensor
    video_features: Tensor


class Objective(nn.Module, ABC):
    """A term of the pretraining loss; parameters and buffers of its own are trained, saved and resumed with the model.

    ``forward`` takes a :class:`PairOutput` and returns the scalar loss and a report of detached scalars to log. Under
    several processes the loss is that of the global batch, the same on every process.
    """

    @abstractmethod
    def forward(self, output: PairOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report of one batch."""


_OBJECTIVES: dict[str, type[Objective]] = {}


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: makes an objective available to ``objectives: [{name: ...}]``."""

    def decorate(objective: type[Objective]) -> type[Objective]:
        if name in _OBJECTIVES:
            raise ValueError(f"an objective named {name!r} is registered already: {_OBJECTIVES[name]}")
        _OBJECTIVES[name] = objective
        return objective

    return decorate


def create_objective(name: str, **options: Any) -> Objective:
    """Builds the objective ``name`` with its keyword arguments.

    Raises:
        ValueError: for an unknown name or option, with the nearest known one.
    """
    if name not in _OBJECTIVES:
        near = difflib.get_close_matches(name, _OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"objectives: unknown name {name!r}{hint} Known: {', '.join(list_objectives())}")
    try:
        return _OBJECTIVES[name](**options)
    except TypeError as error:
        raise ValueError(f"objectives: {name}: {error}") from error


def list_objectives() -> dict[str, str]:
    """Names of all objectives with the first line of their documentation."""
    return {name: (cls.__doc__ or "").split("\n")[0] for name, cls in sorted(_OBJECTIVES.items())}
