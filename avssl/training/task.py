"""What the engine trains, and all that it knows of it: pretraining and fine-tuning are each a task."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from avssl.data.batch import Batch


class Task(nn.Module, ABC):
    """A model with its losses: ``task(batch) -> losses, report``."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What is evaluated and exported."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by name, whose sum is minimized, and scalars to log."""

    drawing: tuple[str, ...] = ()
    """Its methods that draw inputs: tensors, or None, of a batch -> a tensor without gradient."""

    @property
    def frontend(self) -> nn.Module | None:
        """What makes a spectrogram of a waveform, within what the task draws."""
        return None

    def prepare(self, batch: Batch) -> dict[str, Tensor] | None:
        """All that a step needs of ``batch``, drawn and augmented: :meth:`compute` makes of it what ``forward`` does.

        None where a step is more than that, so that ``forward`` alone can compute it.
        """
        return None

    def compute(self, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and scalars as of ``forward``, of what :meth:`prepare` gave: waits for no device, draws no input."""
        raise NotImplementedError(f"{type(self).__name__} prepares nothing")

    def before_step(self, step: int, max_steps: int) -> None:
        """Called before each optimizer step, of which ``step`` were taken."""

    def after_step(self, step: int, max_steps: int) -> None:
        """Called after each optimizer step, of which ``step`` were taken."""
