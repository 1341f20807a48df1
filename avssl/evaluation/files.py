"""Files appear whole or not at all; see :mod:`mast.files`."""

from mast.files import atomic_path

__all__ = ["atomic_path"]
