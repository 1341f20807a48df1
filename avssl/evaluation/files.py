"""Files appear whole or not at all: :mod:`mast.files`, imported with the first of them, since ``mast`` brings torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """See :func:`mast.files.atomic_path`."""
    from mast import files

    with files.atomic_path(path) as temporary:
        yield temporary


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """See :func:`mast.files.naming`."""
    from mast import files

    with files.naming(path):
        yield
