"""The one exception of the media readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class MediaError(Exception):
    """A file that cannot give what was asked of it.

    Attributes:
        path: the file.
        reason: a short phrase from a small set ("no audio stream", "file not found"), fit for counting.
        detail: what is particular to this case ("ends at 2.98 s"), or "".
    """

    def __init__(self, path: str | Path, reason: str, detail: str = "") -> None:
        # FFmpeg's messages run over several lines; a log line must not.
        self.path, self.reason, self.detail = str(path), reason, " ".join(detail.split())
        super().__init__(f"{self.path}: {reason}" + (f" ({self.detail})" if self.detail else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.detail)  # crosses process borders whole
