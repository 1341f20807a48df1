"""Self-supervised audio-visual pretraining with the Multiscale Audio Spectrogram Transformer."""

import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avssl.api import Embeddings, Predictions, Result, embed, evaluate, finetune, predict, pretrain
    from avssl.loading import Loaded, load

__all__ = [
    "Embeddings",
    "Loaded",
    "Predictions",
    "Result",
    "embed",
    "evaluate",
    "finetune",
    "load",
    "predict",
    "pretrain",
]
__version__ = "0.1.0"

# OpenMP threads that spin while they wait take the core from the decoding processes, and each operator then waits for
# the scheduler: a training step beside one busy process took 11.5 s, and 1.8 s with threads that sleep. Only read when
# torch is first loaded, and only a default.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors on huge pages: a step on a CPU touches gigabytes of fresh memory, 4 KiB by 4 KiB otherwise.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class _Imports(MetaPathFinder):
    """What is done before others' packages are imported; it finds nothing itself.

    Before torchvision or torchaudio, mast repairs CPU-only torch beside builds that are linked against CUDA; not at
    once, because mast imports torch, which nobody who asks for help need wait for. And lightning_fabric imports
    torchmetrics only to see its version, which costs as much as Fabric itself and more where transformers is installed:
    it is told that there is none. Only its callback SpikeDetection, unused here, would need it.
    """

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname in ("torchvision", "torchaudio"):
            import mast  # noqa: F401
        elif fullname == "torchmetrics":
            asking = sys.modules.get("lightning_fabric.utilities.imports")
            if getattr(getattr(asking, "__spec__", None), "_initializing", False):
                raise ModuleNotFoundError("lightning_fabric needs no torchmetrics", name=fullname)


sys.meta_path.insert(0, _Imports())


def __getattr__(name: str) -> Any:
    """The functions of :mod:`avssl.api` and :mod:`avssl.loading`, which are imported at first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("avssl.loading" if name in ("Loaded", "load") else "avssl.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
