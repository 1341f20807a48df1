"""The momentum update that makes a teacher of a student."""

from collections.abc import Iterable

import torch
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor


@torch.no_grad()
def follow(
    teacher: Iterable[Tensor],
    student: Iterable[Tensor],
    step: int,
    max_steps: int,
    momentum: float,
    last: float = 1.0,
) -> None:
    """``m * teacher + (1 - m) * student``, with m rising from ``momentum`` to ``last`` on a cosine, as to 1 in BYOL
    (Grill et al. 2020).

    In place, unlike lightly's ``update_momentum``: sharded parameters need that.

    Args:
        teacher: Parameters that are moved.
        student: Those that they move towards, in the same order.
        step: Optimizer steps taken, from 1.
        max_steps: Steps of the whole run.
        momentum: m at the first step.
        last: m at the last one.
    """
    m = cosine_schedule(min(step, max_steps) - 1, max_steps, momentum, last)
    torch._foreach_lerp_(list(teacher), list(student), 1 - m)
