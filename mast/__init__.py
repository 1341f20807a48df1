"""MAST: Multiscale Audio Spectrogram Transformer, its log-mel frontend and the AST baseline."""

from mast import binaries

repaired = binaries.repair()  # before anything can import torchvision or torchaudio

from mast import adapters  # noqa: E402, F401
from mast.ast import AST  # noqa: E402
from mast.base import SpectrogramModel  # noqa: E402
from mast.export import export_onnx, export_program, quantize_onnx, save_program  # noqa: E402
from mast.exported import open_exported  # noqa: E402
from mast.fast import accelerate, backends, set_backend  # noqa: E402
from mast.frontend import LogMel  # noqa: E402
from mast.hub import LoadError, Pretrained, from_pretrained, load_pretrained, save_pretrained  # noqa: E402
from mast.model import MAST  # noqa: E402
from mast.registry import create_model, list_models, register_model  # noqa: E402
from mast.streaming import StreamingLogMel  # noqa: E402

__all__ = [
    "AST",
    "MAST",
    "LoadError",
    "LogMel",
    "Pretrained",
    "SpectrogramModel",
    "StreamingLogMel",
    "accelerate",
    "backends",
    "create_model",
    "export_onnx",
    "export_program",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "open_exported",
    "quantize_onnx",
    "register_model",
    "save_pretrained",
    "save_program",
    "set_backend",
]
