"""The MAST models by name. Parameters are for 527 classes, MACs for 128 x 1024 with attention (see mast.complexity)."""

from typing import Any

from mast.base import SpectrogramModel
from mast.model import MAST
from mast.registry import build_with, register_model


@register_model
def mast_base(**overrides: Any) -> SpectrogramModel:
    """51.39 M parameters, 26.30 G MACs."""
    return build_with(MAST, {"embed_dim": 96, "depths": (2, 3, 16, 3), "drop_path": 0.1}, overrides)


@register_model
def mast_small(**overrides: Any) -> SpectrogramModel:
    """34.69 M parameters, 18.17 G MACs."""
    return build_with(MAST, {"embed_dim": 96, "depths": (1, 2, 11, 2), "drop_path": 0.1}, overrides)


@register_model
def mast_tiny(**overrides: Any) -> SpectrogramModel:
    """23.94 M parameters, 11.41 G MACs."""
    return build_with(MAST, {"embed_dim": 96, "depths": (1, 2, 5, 2), "drop_path": 0.1}, overrides)


@register_model
def mast_pico(**overrides: Any) -> SpectrogramModel:
    """6.17 M parameters, 3.62 G MACs: for small data and for CPUs."""
    return build_with(MAST, {"embed_dim": 48, "depths": (1, 2, 5, 2), "drop_path": 0.0}, overrides)


@register_model
def mast_micro(**overrides: Any) -> SpectrogramModel:
    """1.82 M parameters, 1.66 G MACs: for sets of a few hundred clips."""
    return build_with(MAST, {"embed_dim": 32, "depths": (1, 2, 4, 1), "drop_path": 0.0}, overrides)


@register_model
def mast_nano(**overrides: Any) -> SpectrogramModel:
    """1.36 M parameters, 1.19 G MACs: for the demo and for tests."""
    return build_with(MAST, {"embed_dim": 32, "depths": (1, 1, 2, 1), "drop_path": 0.0}, overrides)
