"""Cross-modal momentum contrast."""

from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor

from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.gathering import gather_constant
from avssl.objectives.key_queue import KeyQueue
from avssl.objectives.vectors import unit


def contrast_logits(queries: Tensor, keys: Tensor, queue: KeyQueue, temperature: float) -> Tensor:
    """Cosine similarities over the temperature; (B, N + Q), -inf at slots of the queue that are still empty.

    Args:
        queries: (B, D) L2-normalized.
        keys: (N, D) L2-normalized keys of the global batch, the positives among them.
        queue: Past keys, Q slots.
        temperature: That similarities are divided by.
    """
    past = (queries @ queue.keys.to(queries.dtype).T).masked_fill(queue.empty_slots, -torch.inf)
    return torch.cat([queries @ keys.T, past], dim=1) / temperature


@register_objective("moco")
class MoCo(Objective):
    """Momentum contrast across modalities: the teacher's keys of the other modality, against a queue of past ones.

    He et al. 2020, eq. 1, in both directions: the query is the student's embedding of one modality, the positive key
    the teacher's embedding of the other modality of the same clip. Negatives are the keys in the queue of that other
    modality and, so that the first steps with their empty queues have some, the keys of the other clips of the global
    batch. The loss is the mean of both directions; keys enter the queues after it was computed. The teacher's momentum
    is the paper's 0.999; the config's ``teacher_momentum`` sets another, which runs of under a few thousand steps need.

    Args:
        dim: Width of its projection.
        queue: Keys kept per modality.
        temperature: Of the softmax.
    """

    needs_teacher = True
    teacher_momentum = (0.999, 0.999)
    retrieves = True

    def __init__(self, dim: int, queue: int = 4096, temperature: float = 0.07) -> None:
        super().__init__()
        if queue < 1:
            raise ValueError(f"moco: queue must be at least 1, got {queue}")
        if not temperature > 0:
            raise ValueError(f"moco: temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.audio_queue, self.video_queue = KeyQueue(queue, dim), KeyQueue(queue, dim)

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "MoCo":
        """Queues are as wide as the projection."""
        return cls(shapes.joint, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of this process' clips; the report has the accuracy among all keys and the filled slots."""
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        teacher_audio, teacher_video = (step.project(self, modality, teacher=True) for modality in ("audio", "video"))
        # Mixed precision would round similarities to about 3 digits: logits and softmax stay in fp32 or better.
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio_keys, video_keys = gather_constant(unit(teacher_audio)), gather_constant(unit(teacher_video))
            to_video = contrast_logits(unit(joint_audio), video_keys, self.video_queue, self.temperature)
            to_audio = contrast_logits(unit(joint_video), audio_keys, self.audio_queue, self.temperature)
            size = len(joint_audio)
            own = torch.arange(size, device=joint_audio.device) + rank() * size  # keys are in the order of the ranks
            loss = (F.cross_entropy(to_video, own) + F.cross_entropy(to_audio, own)) / 2
        if self.training:
            self.audio_queue.enqueue(audio_keys)
            self.video_queue.enqueue(video_keys)
        with torch.no_grad():
            right = (to_video.argmax(dim=1) == own).float() + (to_audio.argmax(dim=1) == own).float()
        return loss, {"accuracy": right.mean() / 2, "queue_filled": self.audio_queue.filled.float()}
