"""MAST: Multiscale Audio Spectrogram Transformer, its log-mel frontend and the AST baseline."""

from mast import binaries

repaired = binaries.repair()  # before anything can import torchvision or torchaudio
