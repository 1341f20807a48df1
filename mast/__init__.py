"""MAST: Multiscale Audio Spectrogram Transformer, its log-mel frontend and the AST baseline."""

from mast import binaries

repaired = binaries.repair()  # before anything can import torchvision or torchaudio

from mast import variants  # noqa: E402, F401  (registers the models)
from mast.frontend import LogMel  # noqa: E402
from mast.model import MAST  # noqa: E402
from mast.registry import create_model, list_models, register_model  # noqa: E402

__all__ = ["MAST", "LogMel", "create_model", "list_models", "register_model"]
