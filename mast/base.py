"""What all models of this package share: head, features, and saving."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def init_weights(module: nn.Module) -> None:
    """Truncated normal (std 0.02) for linear layers, zeros for their biases; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_spectrogram(x: Tensor, model: str) -> None:
    """Raise ValueError unless ``x`` is (B, 1, F, T)."""
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(
            f"{model}: expected a spectrogram of shape (B, 1, mels, frames), got {tuple(x.shape)}; "
            "mast.LogMel makes one from a waveform (B, samples)"
        )


class SpectrogramModel(nn.Module, ABC):
    """Base of MAST and AST, and of encoders that others register.

    A subclass gives ``num_features`` to the constructor, sets ``blocks``, defines ``stride`` and ``forward_grid``, and
    ends its constructor with ``reset_classifier(num_classes)``. Learning rates by layer, activation checkpointing,
    sharding and counting (``mast.complexity``) follow from ``blocks``.

    Attributes:
        any_length: whether a tracer can follow the model at every length, so that exported files take any.
        blocks: the repeated blocks from the input on, submodules of the model.
        name: registry name, set by ``create_model``.
        config: constructor arguments, JSON-able, enough to build the model again.
        num_features: channels of the tokens.
        num_classes: width of the head, 0 for none.
    """

    any_length: bool = False
    channels_first: bool = False  # of the blocks' outputs with a grid: (B, C, F, T), not (B, F, T, C)
    blocks: Iterable[nn.Module]
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

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens after the final norm (B, N, num_features), time the faster index."""
        return self.forward_grid(x).flatten(1, 2)

    @abstractmethod
    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> tokens on their grid of frequency and time (B, F', T', num_features)."""

    @property
    @abstractmethod
    def stride(self) -> tuple[int, int]:
        """Mel bins and frames between neighbouring tokens of ``forward_grid``."""

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, num_features) -> logits (B, num_classes), or their mean (B, num_features)."""
        features = tokens.mean(dim=1)
        return features if pre_logits else self.head(features)

    def features(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """(B, 1, mels, T) -> features (B, num_features).

        Args:
            x: log-mel spectrograms.
            frames: (B,) frames of each that have sound, see ``LogMel.valid_frames``; the rest is padding, whose tokens
                a model with ``mask_padding`` leaves out. None: all.
        """
        return self.forward_head(self.forward_features(x), pre_logits=True)

    @property
    def num_layers(self) -> int:
        """The layer of the final norm and the head; embeddings are layer 0, the blocks 1, 2, ... from the input on."""
        return len(list(self.blocks)) + 1

    def layer_of(self, name: str) -> int:
        """The layer, 0 to ``num_layers``, that the parameter ``name`` belongs to: for layer-wise learning rates.

        What lies in no block is layer 0, except ``norm`` and ``head``.
        """
        layers = {id(block): index for index, block in enumerate(self.blocks, start=1)}
        module: Any = self
        for part in name.split("."):
            module = getattr(module, part)
            if id(module) in layers:
                return layers[id(module)]
        return self.num_layers if name.split(".")[0] in ("norm", "head") else 0

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: biases and norms."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}

    def rebuilding_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by which ``create_model`` builds the model again, without the files that it was built from.

        Args:
            given: those that it was built with.
        """
        return dict(given)

    def backends(self) -> dict[str, str]:
        """What computes each block on the model's device, see ``mast.backends``."""
        from mast.fast import backends  # the models know nothing of what makes them fast

        return backends(self)

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
        like = next(self.parameters())
        self.head = head.to(device=like.device, dtype=like.dtype)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> Path:
        """See ``mast.hub.save_pretrained``."""
        from mast.hub import save_pretrained  # hub needs the registry, which the models fill after this module

        return save_pretrained(self, folder, **kwargs)
