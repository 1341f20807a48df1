"""Self-supervised audio-visual pretraining with the Multiscale Audio Spectrogram Transformer."""

import os

# OpenMP threads that spin while they wait take the core from the decoding processes, and each operator then waits for
# the scheduler: a training step beside one busy process took 11.5 s, and 1.8 s with threads that sleep. Only read when
# torch is first loaded, and only a default.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors on huge pages: a step on a CPU touches gigabytes of fresh memory, 4 KiB by 4 KiB otherwise.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import mast as _mast  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)

__version__ = "0.1.0"
