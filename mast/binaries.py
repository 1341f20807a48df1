"""Makes CPU-only torch work beside torchvision and torchaudio wheels that are linked against CUDA.

The wheels on PyPI link ``libtorch_cuda``. With a CPU-only torch their binaries cannot load, and then ``import
torchvision`` fails with "operator torchvision::nms does not exist" and ``import torchaudio`` with "Could not load this
library", although nearly everything in both packages is plain Python. ``repair()`` looks whether the binaries load.
Where they do, it changes nothing. Where they don't, it declares the two operators whose absence stops torchvision, and
lets torchaudio believe that it was built without its extension.

It imports neither package, so it costs milliseconds; it must run before either is imported.
"""

import importlib.util
import logging
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_SUFFIXES = (".so", ".pyd", ".dylib")
_TORCHVISION_OPS = ("nms", "qnms")
_kept_alive: list[torch.library.Library] = []  # a Library withdraws its operators when it is collected


def repair() -> dict[str, bool]:
    """Repair what needs it.

    Returns:
        For ``"torchvision"`` and ``"torchaudio"``: True where a repair was made, False where the package is absent,
        was imported before, or loads as it is.
    """
    return {"torchvision": _repair_torchvision(), "torchaudio": _repair_torchaudio()}


def _package_folder(name: str) -> Path | None:
    """Folder of an installed package that has not been imported yet; None otherwise."""
    if name in sys.modules:
        return None
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _loads(folder: Path, stem: str) -> bool:
    """Whether the shared library ``stem*`` in ``folder`` loads. It stays loaded: its package would load it anyway."""
    libraries = [path for suffix in _SUFFIXES for path in sorted(folder.glob(f"{stem}*{suffix}"))]
    if not libraries:
        return False
    try:
        torch.ops.load_library(libraries[0])
    except (OSError, ImportError) as error:
        logger.debug("%s does not load beside torch %s: %s", libraries[0], torch.__version__, error)
        return False
    return True


def _repair_torchvision() -> bool:
    folder = _package_folder("torchvision")
    if folder is None or _loads(folder, "_C"):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for op in _TORCHVISION_OPS:  # declared without a kernel: calling one is an error that names the operator
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)
    return True


def _repair_torchaudio() -> bool:
    folder = _package_folder("torchaudio")
    if folder is None:
        return False
    utils = folder / "_extension" / "utils.py"
    if not list((folder / "lib").glob("_torchaudio*")) or not utils.is_file() or _loads(folder / "lib", "_torchaudio"):
        return False
    # torchaudio looks for its extension in utils._LIB_DIR. Placing its own utils module, looking elsewhere, in
    # sys.modules makes `import torchaudio` take the path of a build without extension, which torchaudio supports.
    name = "torchaudio._extension.utils"
    spec = importlib.util.spec_from_file_location(name, utils)
    if spec is None or spec.loader is None:
        return False
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._LIB_DIR = folder / "lib" / "not-loadable-beside-this-torch"  # type: ignore[attr-defined]
    sys.modules[name] = module
    return True
