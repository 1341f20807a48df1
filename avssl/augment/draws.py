"""What all augmentations share: draws for every clip of a batch, and checks of their settings."""

import math

import torch
from torch import Tensor


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """(B,) draws from [low, high), one for each item of ``like``, on its device."""
    return torch.empty(len(like), device=like.device).uniform_(low, high)


def column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (B,) in the shape (B, 1, ...) that broadcasts over ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def check(name: str, value: float, low: float, high: float) -> None:
    """ValueError, naming the option, when ``value`` is not a number from ``low`` to ``high``."""
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"augment.{name}: must lie in [{low}, {high}], got {value}")


def check_range(name: str, values: tuple[float, float], low: float, high: float) -> None:
    """ValueError, naming the option, when ``values`` is not (smallest, largest) from ``low`` to ``high``."""
    smallest, largest = values
    if not (low <= smallest <= largest <= high):
        raise ValueError(f"augment.{name}: must be [smallest, largest] in [{low}, {high}], got {list(values)}")
