"""What all augmentations share: settings by keyword, checked, and draws for every clip of a batch."""

from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from avssl.bounds import check_bounds


class ConfiguredAugment(nn.Module):
    """A module whose settings are the fields of its ``Config``, given by keyword and checked against their bounds.

    Attributes:
        config: The settings; what is not given is as ``Config`` declares it.

    Raises:
        SettingsError: one is out of its bounds.
    """

    Config: ClassVar[type]

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = self.Config(**settings)
        check_bounds(self.config, "augment.")

    @classmethod
    def of(cls, config: Any, **more: Any) -> Self:
        """The module with its settings out of ``config``, which has the fields of ``Config`` among others.

        Args:
            config: Settings, such as :class:`avssl.augment.settings.AugmentConfig`.
            **more: What the module takes besides.
        """
        return cls(**{item.name: getattr(config, item.name) for item in fields(cls.Config)}, **more)


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """(B,) draws from [low, high), one for each item of ``like``, on its device."""
    return torch.empty(len(like), device=like.device).uniform_(low, high)


def column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (B,) in the shape (B, 1, ...) that broadcasts over ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))
