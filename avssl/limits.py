"""What a picture and a clip may cost at most. A command sets it from its settings, its decoding processes are told.

It is one for a process, as the readers of media far below know no settings: ``set_limits(config.data)``.
"""

from dataclasses import dataclass
from typing import Protocol

from avssl.bounds import COUNT, Bound

# Width times height: that of 8K cinema, of which a picture takes 106 MB as RGB.
MAX_PIXELS = 8192 * 4320
# Decoded sound and pictures of a clip, in bytes; of a sample of a cache, which may be an hour long.
MAX_CLIP_BYTES, MAX_SAMPLE_BYTES = 1 << 30, 1 << 32
# What these settings may be, by name; the first is FFmpeg's.
LIMITS = {"max_pixels": Bound(1, 2**31 - 1), "max_clip_bytes": COUNT}


class Settings(Protocol):
    """The settings of data, of any command."""

    @property
    def max_pixels(self) -> int: ...
    @property
    def max_clip_bytes(self) -> int: ...


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        max_pixels: Width times height of the largest picture that is decoded.
        max_clip_bytes: What the decoded sound or pictures of one read may take.
    """

    max_pixels: int = MAX_PIXELS
    max_clip_bytes: int = MAX_CLIP_BYTES

    def too_large(self, size: float) -> str:
        """What is wrong with a read of ``size`` bytes, for a message; "" where nothing is."""
        if size <= self.max_clip_bytes:
            return ""
        return f"{size / 1e6:.0f} MB, limit {self.max_clip_bytes / 1e6:.0f} MB; max_clip_bytes raises it"


_current = Limits()


def limits() -> Limits:
    """Those of this process."""
    return _current


def set_limits(settings: Settings) -> None:
    """Takes over the limits of ``settings``, whose bounds have been checked, for this process and those it starts."""
    global _current
    _current = Limits(settings.max_pixels, settings.max_clip_bytes)
