"""Files that appear whole or not at all, and that tell when they are not as they were written.

The first is :mod:`mast.files`, imported with the first of them, since ``mast`` brings torch.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LINE = "# sha256: "


class DamagedError(ValueError):
    """A file is not as it was written; the message names it and the ways out."""


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


def remove_leftovers(folder: str | os.PathLike[str], names: Collection[str] | None = None) -> None:
    """See :func:`mast.files.remove_leftovers`."""
    from mast import files

    files.remove_leftovers(folder, names)


def seal(values: Mapping[str, Any], key: str = "sha256") -> dict[str, Any]:
    """``values`` of a JSON file with the SHA-256 of them all as the entry ``key``; the layout does not count."""
    kept = {name: value for name, value in values.items() if name != key}
    return kept | {key: _digest(json.dumps(kept, sort_keys=True))}


def unseal(data: bytes, path: str | os.PathLike[str], again: str, key: str = "sha256") -> dict[str, Any]:
    """The values of a JSON file without their seal; a file without one, as of earlier versions, is taken as it is.

    Args:
        data: The file.
        path: For the message.
        again: For the message: what makes it anew, "evaluate the run again".
        key: As :func:`seal` was given.

    Raises:
        DamagedError: it is no JSON object, or not what was sealed.
    """
    try:
        values = json.loads(data)
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: is damaged, no JSON of avssl ({' '.join(str(error).split())}); {again}") from error
    written = values.pop(key, None)
    if written is not None and written != seal(values, key)[key]:
        raise DamagedError(
            f"{path}: is not as it was written, its checksum differs; {again}, or, if you changed it by hand, take its "
            f'entry "{key}" out'
        )
    return values


def seal_text(text: str) -> str:
    """``text`` of a YAML file with the SHA-256 of it in a comment, its last line."""
    return f"{text}{_LINE}{_digest(text)}\n"


def is_sealed(text: str) -> bool:
    """Whether a text is as :func:`seal_text` gave it; one without such a line is taken to be."""
    body, line, written = text.rpartition(_LINE)
    return not line or written.strip() == _digest(body)


def has_seal(text: str) -> bool:
    """Whether a text has the line of :func:`seal_text`, right or wrong."""
    return _LINE in text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
