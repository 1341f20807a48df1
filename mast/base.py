"""What all models of this package share: head, features, and saving."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mast.layers import PatchEmbed, init_weights


class SpectrogramModel(nn.Module, ABC):
    """Base of MAST and AST. A subclass sets ``patch_embed`` and ``norm``, calls ``reset_classifier``, defines the rest.

    Attributes:
        name: registry name, set by ``create_model``.
        config: constructor arguments, JSON-able, enough to build the model again.
        num_features: channels of the tokens.
        num_classes: width of the head, 0 for none.
    """

    patch_embed: PatchEmbed
    norm: nn.LayerNorm
    head: nn.Module

    def __init__(self, config: dict[str, Any], num_features: int) -> None:
        super().__init__()
        self.name = ""
        self.config = config
        self.num_features = num_features
        self.num_classes = 0

    def make_head(self, num_classes: int) -> nn.Module:
        """A head from features (B, num_features) to logits (B, num_classes)."""
        return nn.Linear(self.num_features, num_classes)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens after the final norm (B, N, num_features)."""

    @abstractmethod
    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens on their grid of frequency and time (B, F', T', num_features)."""

    @property
    @abstractmethod
    def stride(self) -> tuple[int, int]:
        """Mel bins and frames between neighbouring tokens of ``forward_grid``."""

    @abstractmethod
    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, num_features) -> logits (B, num_classes), or features (B, num_features)."""

    def features(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """(B, 1, mels, T) -> features (B, num_features).

        Args:
            x: log-mel spectrograms.
            frames: (B,) frames of each that have sound, see ``LogMel.valid_frames``; the rest is padding, whose tokens
                a model with ``mask_padding`` leaves out. None: all.
        """
        return self.forward_head(self.forward_features(x), pre_logits=True)

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """The layer of the final norm and the head; embeddings are layer 0, the blocks 1, 2, ... from the input on."""

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """The layer, 0 to ``num_layers``, that the parameter ``name`` belongs to: for layer-wise learning rates."""

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> logits (B, num_classes), or features (B, num_features) without a head."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one; 0 removes it, and the model returns features."""
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be 0 (features) or positive")
        self.num_classes = num_classes
        self.config["num_classes"] = num_classes
        head = self.make_head(num_classes).apply(init_weights) if num_classes else nn.Identity()
        self.head = head.to(device=self.norm.weight.device, dtype=self.norm.weight.dtype)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> Path:
        """See ``mast.hub.save_pretrained``."""
        from mast.hub import save_pretrained  # hub needs the registry, which the variants fill after this module

        return save_pretrained(self, folder, **kwargs)
