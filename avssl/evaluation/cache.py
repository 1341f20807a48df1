"""Embeddings that are computed once: kept in files named after all that they depend on."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avssl.data.manifest import Manifest
from avssl.errors import is_of_machine
from avssl.evaluation.embeddings import Embeddings

logger = logging.getLogger(__name__)

# Part of every key: raise it when the same weights and clips give other embeddings than before.
VERSION = 2


class EmbeddingCache:
    """A folder of embeddings.

    Args:
        folder: where the files are; None keeps nothing and computes every time.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(
        self, key: Mapping[str, Any], names: Sequence[str], make: Callable[[], Mapping[str, Embeddings]]
    ) -> dict[str, Embeddings]:
        """What ``make`` gives, or gave when it was called for the same ``key`` before.

        Args:
            key: all that the embeddings depend on, as plain values; see :func:`model_digest`, :func:`media_digest`.
            names: what ``make`` returns; a file is kept for each.
        """
        if self.folder is None:
            return dict(make())
        text = json.dumps({**key, "version": VERSION}, sort_keys=True)
        stem = hashlib.sha256(text.encode()).hexdigest()[:20]
        files = {name: self.folder / f"{stem}-{name}.npz" for name in names}
        found = _read(files)
        if found is not None:
            logger.info("embeddings read from %s", next(iter(files.values())))
            return found
        made = dict(make())
        for name, file in files.items():
            made[name].save(file)
        return made


def _read(files: Mapping[str, Path]) -> dict[str, Embeddings] | None:
    if not all(file.is_file() for file in files.values()):
        return None
    try:
        return {name: Embeddings.load(file) for name, file in files.items()}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if is_of_machine(error):
            raise
        logger.warning("cannot read cached embeddings (%s): computing them again", error)
        return None


def model_digest(*modules: nn.Module, settings: Mapping[str, Any]) -> str:
    """Hash of all weights and buffers, wherever they were loaded from, and of ``settings``."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"\n{name}:{array.dtype}:{tuple(array.shape)}:".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def media_digest(manifest: Manifest) -> str:
    """Hash of the rows and labels of a manifest, and of the sizes and times of its files."""
    digest = hashlib.sha256(manifest.digest.encode())
    for path in sorted(set(manifest.column("path"))):
        try:
            found = (manifest.root / path).stat()
            digest.update(f"{path}:{found.st_size}:{found.st_mtime_ns}\n".encode())
        except OSError as error:
            if is_of_machine(error):
                raise
            digest.update(f"{path}:absent\n".encode())
    return digest.hexdigest()[:20]
