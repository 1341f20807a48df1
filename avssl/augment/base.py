"""What all augmentations share: settings by keyword, checks of them, and draws for every clip of a batch."""

import math
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class ConfiguredAugment(nn.Module):
    """A module whose settings are the fields of its ``Config``, given by keyword.

    Attributes:
        config: The settings; what is not given is as ``Config`` declares it.
    """

    Config: ClassVar[type]

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = self.Config(**settings)

    @classmethod
    def of(cls, config: Any, **more: Any) -> Self:
        """The module with its settings out of ``config``, which has the fields of ``Config`` among others.

        Args:
            config: Settings, such as :class:`avssl.augment.settings.AugmentConfig`.
            **more: What the module takes besides.
        """
        return cls(**{item.name: getattr(config, item.name) for item in fields(cls.Config)}, **more)

    def check(self, name: str, low: float, high: float) -> None:
        """ValueError, naming the setting, when it is not a number from ``low`` to ``high``."""
        check(name, getattr(self.config, name), low, high)

    def check_range(self, name: str, low: float, high: float) -> None:
        """ValueError, naming the setting, when it is not (smallest, largest) from ``low`` to ``high``."""
        smallest, largest = getattr(self.config, name)
        if not (low <= smallest <= largest <= high):
            raise ValueError(
                f"augment.{name}: must be [smallest, largest] in [{low}, {high}], got {[smallest, largest]}"
            )


def check(name: str, value: float, low: float, high: float) -> None:
    """ValueError, naming the setting, when ``value`` is not a number from ``low`` to ``high``."""
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"augment.{name}: must lie in [{low}, {high}], got {value}")


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """(B,) draws from [low, high), one for each item of ``like``, on its device."""
    return torch.empty(len(like), device=like.device).uniform_(low, high)


def column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (B,) in the shape (B, 1, ...) that broadcasts over ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))
