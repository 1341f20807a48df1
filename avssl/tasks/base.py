"""What the training loop asks of a task."""

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

    def after_step(self, step: int, max_steps: int) -> None:
        """Called after each optimizer step, of which ``step`` were taken."""
