"""What a cache says of itself, and its manifest: the rows of the original, their paths addresses of samples."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from avssl.data.failures import DataError
from avssl.data.manifest import METADATA_KEY, Manifest
from avssl.data.media.audio import Channel, check_channel
from avssl.data.shards.store import ADDRESS_END, Store, is_address, is_url
from avssl.errors import is_of_machine
from avssl.files import DamagedError, atomic_path, seal, unseal
from avssl.progress import Meter

logger = logging.getLogger(__name__)

ABOUT = "cache.json"
INDEX = "index.parquet"
# Beside the copies of both that stand in for a cache at a URL.
LOCATION = "location.json"
# 2: the spans of both streams, frames upright, the channel.
FORMAT = 2


def is_cache(name: str) -> bool:
    """Whether ``name`` is a folder that holds a cache, finished or not, or a URL, where only a cache can be."""
    return is_url(name) or (Path(name).expanduser() / ABOUT).is_file()


def store_of(folder: Path) -> Store:
    """The place of the shards whose index is in ``folder``."""
    try:
        text = (folder / LOCATION).read_bytes()
    except FileNotFoundError:
        return Store(str(folder))
    return Store(unseal(text, folder / LOCATION, "delete it")["location"])


def about_of(store: Store) -> dict[str, Any]:
    """What ``cache.json`` holds.

    Raises:
        DataError: there is none, it is of another version or kind, or not as it was written.
    """
    try:
        about = unseal(store.read(ABOUT), f"{store.location}/{ABOUT}", "make the cache again with avssl cache")
        known = about["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{store.location}: holds no cache (no {ABOUT}); make it with avssl cache") from error
    except DamagedError as error:
        raise DataError(str(error)) from error
    except KeyError as error:
        raise DataError(f"{store.location}/{ABOUT}: not a cache's; make it again with avssl cache") from error
    if known != FORMAT:
        raise DataError(f"{store.location}: is a cache of format {known}, not {FORMAT}; make it again")
    return about


def finished(location: str) -> tuple[Store, dict[str, Any]]:
    """The store of a finished cache, and what its ``cache.json`` holds.

    Raises:
        DataError: there is no cache, or it is not finished.
    """
    store = Store(location)
    about = about_of(store)
    if not about["complete"]:
        raise DataError(
            f"{store.location}: this cache is not finished; the command that began it goes on where it stopped"
        )
    return store, about


def local_index(location: str) -> Path:
    """The folder of a cache's index: the cache itself, or where the index of one at a URL is copied to.

    Raises:
        DataError: there is no cache, or it is not finished.
    """
    store, about = finished(location)
    if store.local is not None:
        return store.local
    location = store.location
    digest = hashlib.sha256(location.encode()).hexdigest()[:12]
    root = Path(os.environ.get("AVSSL_CACHE") or "~/.cache/avssl").expanduser()
    folder = root / "shards" / digest
    text = json.dumps(seal(about), indent=2)
    if not (folder / ABOUT).is_file() or (folder / ABOUT).read_text(encoding="utf-8") != text:
        logger.info("copying the index of %s to %s", location, folder)
        store.fetch(INDEX, folder / INDEX)
        for name, content in ((LOCATION, json.dumps(seal({"location": location}))), (ABOUT, text)):
            with atomic_path(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    return folder


def open_cache(location: str) -> Manifest:
    """The manifest of a cache, scanned; rows that could not be cached have their reason in "error".

    Raises:
        DataError: there is none, it is not finished, or it names files that are not in its shards.
    """
    folder = local_index(location)
    # The paths of originals that could not be cached may be absolute: these are named, never opened.
    manifest = Manifest.load(folder / INDEX, folder, allow_absolute=True)
    paths = manifest.table["path"].filter(pc.equal(manifest.table["error"], ""))
    others = paths.filter(pc.invert(pc.match_substring_regex(paths, rf"^[^/].*{ADDRESS_END}")))
    if len(others):
        raise DataError(
            f"{location}: its index names {others[0].as_py()!r}, which lies in none of its shards; make it again"
        )
    return manifest


def entry_of(location: str) -> dict[str, Any]:
    """Length and number of clips and the head of the data that a cache was made of, as in a data YAML."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_schema(local_index(location) / INDEX).metadata or {}
    return dict(json.loads(metadata[METADATA_KEY]).get("entry", {}))


def shard_numbers(manifest: Manifest) -> np.ndarray:
    """(N,) int64: the shard of each row.

    Raises:
        DataError: the rows are not those of a cache.
    """
    paths = manifest.column("path")
    if not all(map(is_address, paths)):
        raise DataError("data.sampling: 'shards' needs a cache, which avssl cache makes of any data")
    return np.unique([path.partition("#")[0] for path in paths], return_inverse=True)[1].astype(np.int64)


def check_settings(manifest: Manifest, frame_size: int | None, channel: Channel | None) -> None:
    """Refuses to blow up frames that the cache holds smaller than their originals are, and another channel.

    Args:
        manifest: Of a cache; others pass.
        frame_size: Pixels that a run asks for; None where it looks at no frames.
        channel: What a run hears; None where it hears nothing.

    Raises:
        DataError: naming what the cache holds and both ways out.
        ValueError: a channel that there cannot be.
    """
    if channel is not None:
        check_channel(channel)
    paths = manifest.table["path"].filter(pc.match_substring_regex(manifest.table["path"], ADDRESS_END))
    for folder in pc.replace_substring_regex(paths, "/?[^/]*$", "").unique().to_pylist():  # several in a union
        place = manifest.root / folder
        settings = about_of(Store(str(place)))["settings"]
        side = settings["short_side"]
        if channel is not None and channel != settings["channel"]:
            raise DataError(
                f"data.channel: {channel}, but of several channels the cache {place} holds {settings['channel']}; "
                f"give that, or make it again with --channel {channel}"
            )
        if frame_size is not None and frame_size > side:
            raise DataError(
                f"data.frame_size: {frame_size} is more than the {side} pixels of the cache {place}; give at most "
                f"{side}, or make it again with --short_side {frame_size}"
            )


def verify(location: str, progress: bool = True) -> list[str]:
    """What is wrong with the shards of a finished cache: one line each, none where all is as it was written.

    Raises:
        DataError: there is no cache, or it is not finished.
        OSError: the machine cannot read it now.
    """
    store, about = finished(location)
    wrong: list[str] = []
    with Meter("verifying", total=about["bytes"], unit="B", shown=progress) as meter:
        for name, expected in about["shards"].items():
            if not expected["samples"]:
                continue
            try:
                digest, length = store.sha256(name)
            except OSError as error:
                if is_of_machine(error):  # no verdict on the shard
                    raise
                wrong.append(f"{name}: cannot be read ({error})")
                continue
            if length != expected["bytes"]:
                wrong.append(f"{name}: has {length} bytes, not {expected['bytes']}")
            elif digest != expected["sha256"]:
                wrong.append(f"{name}: SHA-256 is {digest}, not {expected['sha256']}")
            meter.update(expected["bytes"])
    return wrong
