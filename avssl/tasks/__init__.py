"""Tasks bind a model to its losses and augmentation: ``task(batch) -> losses, report``; the loop is the engine's."""

from avssl.tasks.base import Task
from avssl.tasks.finetune import FinetuneTask
from avssl.tasks.pretrain import PretrainTask
from avssl.tasks.step import Augmentation, PairStep

__all__ = ["Augmentation", "FinetuneTask", "PairStep", "PretrainTask", "Task"]
