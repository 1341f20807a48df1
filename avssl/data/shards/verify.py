"""Is every byte of a cache what was written?"""

from __future__ import annotations

from avssl.data.shards.index import finished
from avssl.errors import is_of_machine
from avssl.progress import Meter


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
