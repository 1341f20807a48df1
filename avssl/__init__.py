"""Self-supervised audio-visual pretraining with the Multiscale Audio Spectrogram Transformer."""

import mast as _mast  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)

__version__ = "0.1.0"
