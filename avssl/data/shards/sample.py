"""One cached sample, read as a media file is: sound and frames of any span, and nothing more of it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from avssl.data.media import Channel, MediaError, MediaFile
from avssl.data.media.audio import AudioClip, Sound, Track, checked
from avssl.data.media.container import frame_indices
from avssl.data.media.errors import check_size, raise_if_machine
from avssl.data.media.file import check_span, checked_times
from avssl.data.media.video import scaled_shape
from avssl.data.shards.index import store_of
from avssl.data.shards.store import WAV_HEADER, Address, Store, crc, is_address
from avssl.limits import limits

# A request to an object store costs more than so many bytes do: smaller samples are fetched whole.
_WHOLE = 8 << 20
# Around a span that is converted to another rate, so that the filter sees real neighbours; seconds.
_MARGIN = 0.05


class CachedSample:
    """Reads one sample of a shard; the methods and errors of :class:`avssl.data.media.MediaFile`, times included.

    Args:
        path: Folder of the cache and address of the sample.

    Attributes:
        store: Where its shard is.
        address: Where it lies in that.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        folder, _, name = str(path).rpartition("/")
        self.address = Address.parse(name)
        self.store = _store(folder)
        self._bytes: bytes | None = None
        self._about: dict[str, Any] | None = None

    def __enter__(self) -> CachedSample:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bytes = None

    @property
    def about(self) -> dict[str, Any]:
        """What the sample's JSON holds, see :func:`avssl.data.shards.encode.encode`."""
        if self._about is None:
            data = self._read(self.address.after(), self.address.header)
            if crc(data) != self.address.crc:
                raise MediaError(self.path, "corrupt sample", "header")
            self._about = json.loads(data)
        return self._about

    def audio(
        self, start: float = 0.0, duration: float | None = None, sample_rate: int = 16000, channel: Channel = "mean"
    ) -> AudioClip:
        """See :meth:`avssl.data.media.MediaFile.audio`; the channel is the one that the cache was made of.

        Raises:
            MediaError: also "cached with another channel".
        """
        return checked(self.sound(start, duration, sample_rate, channel), self.path)

    def sound(
        self, start: float = 0.0, duration: float | None = None, sample_rate: int = 16000, channel: Channel = "mean"
    ) -> Sound:
        """As :meth:`audio`, without judging whether enough is there."""
        check_span(start, duration, sample_rate)
        about = self.about.get("sound")
        if about is None:
            raise MediaError(self.path, "no audio stream")
        if channel != about["channel"]:
            raise MediaError(self.path, "cached with another channel", f"{about['channel']}, asked for {channel}")
        rate, origin = about["sample_rate"], round(about["start"] * about["sample_rate"])
        end = origin / rate + about["samples"] / rate if duration is None else start + duration
        margin = 0.0 if rate == sample_rate else _MARGIN
        # Begins on an instant that is a whole number of samples at both rates, as in a file.
        grid = math.gcd(rate, sample_rate)
        track = Track(math.floor(max(0.0, start - margin) * grid) / grid)
        first = max(0, round(track.origin * rate) - origin)
        last = min(about["samples"], math.ceil((end + margin) * rate) - origin)
        count = round((end - start) * sample_rate)
        check_size(4 * (max(0, last - first) + count), self.path)
        if last > first:
            track.add((origin + first) / rate, self._samples(about, first, last), rate)
        waveform = track.resampled(start, count, sample_rate)
        pairs = [(max(low, start), min(high, end)) for low, high in about["intervals"]]
        return Sound(waveform, start, end, [pair for pair in pairs if pair[1] > pair[0]], tuple(about["extent"]))

    def frames(self, times: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
        """See :meth:`avssl.data.media.MediaFile.frames`; ``size`` None gives the size that the cache has.

        Raises:
            MediaError: also "cached frames are too small" where the original had more pixels than the cache.
        """
        wanted = checked_times(times, size)
        about = self.about.get("frames")
        if about is None:
            raise MediaError(self.path, "no video stream")
        original = (about["original"][0], about["original"][1])
        if size is not None and size > min(about["size"]) < min(original):
            raise MediaError(self.path, "cached frames are too small", f"{min(about['size'])} pixels, asked for {size}")
        shape = tuple(about["size"]) if size is None else scaled_shape(*original, size)
        indices, inverse = np.unique(
            frame_indices(np.asarray(about["starts"], dtype=np.float64), wanted, self.path), return_inverse=True
        )
        ends = np.cumsum(about["bytes"])
        first = self.address.after(self.address.header)
        check_size(3 * len(wanted) * (math.prod(about["size"]) + math.prod(shape)), self.path)
        images = []
        for index in indices.tolist():
            length = about["bytes"][index]
            data = self._read(first + int(ends[index]) - length, length)
            if crc(data) != about["crc"][index]:
                raise MediaError(self.path, "corrupt sample", f"frame {index}")
            images.append(self._decoded(data, about["size"], shape))
        return _scaled(np.stack(images), shape)[inverse]

    def _decoded(self, data: bytes, size: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        """An image (H, W, 3) of ``size`` (width, height), or of a part of it that is at least as large as ``shape``."""
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > limits().max_pixels:
                raise MediaError(self.path, "picture too large", f"{image.width} x {image.height}")
            if image.size != tuple(size):
                raise MediaError(self.path, "corrupt sample", f"an image of {image.width} x {image.height}")
            image.draft("RGB", (shape[0], shape[1]))  # decodes at a half or a quarter where that is enough
            return np.asarray(image)
        except Image.DecompressionBombError as error:
            raise MediaError(self.path, "picture too large", str(error)) from error
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise MediaError(self.path, "corrupt sample", str(error)) from error

    def _samples(self, about: dict[str, Any], first: int, last: int) -> np.ndarray:
        """(last - first,) float32; whole blocks are read, since each has its checksum."""
        block, total = about["block"], about["samples"]
        low, high = first // block, -(-last // block)
        place = self.address.after(self.address.header, *self._frame_bytes()) + WAV_HEADER
        data = self._read(place + 2 * low * block, 2 * (min(high * block, total) - low * block))
        for k in range(low, high):
            piece = memoryview(data)[2 * (k - low) * block : 2 * (k - low + 1) * block]
            if crc(piece) != about["crc"][k]:
                raise MediaError(self.path, "corrupt sample", f"sound at second {k * block / about['sample_rate']:g}")
        integers = np.frombuffer(data, "<i2")[first - low * block : last - low * block]
        return integers.astype(np.float32) * np.float32(about["scale"] / 32768)

    def _frame_bytes(self) -> list[int]:
        """Size of the member between header and sound, if there is one."""
        about = self.about.get("frames")
        return [] if about is None else [sum(about["bytes"])]

    def _read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, counted from the sample's first."""
        address = self.address
        try:
            if self._bytes is None and self.store.local is None and address.size <= _WHOLE:
                self._bytes = self.store.read(address.shard, address.offset, address.size)
            if self._bytes is not None:
                data = self._bytes[start : start + size]
            else:
                data = self.store.read(address.shard, address.offset + start, size)
        except FileNotFoundError as error:
            raise MediaError(self.path, "file not found") from error
        except OSError as error:
            raise_if_machine(error, self.path)
            raise MediaError(self.path, "unreadable file", str(error)) from error
        if len(data) != size:
            raise MediaError(self.path, "corrupt sample", "the shard is too short")
        return data


def _scaled(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(T, H, W, 3) uint8 -> the same of ``shape`` (width, height): antialiased bicubic, all of them in one pass."""
    if images.shape[2:0:-1] == shape:
        return images
    import torch  # Pillow takes five times as long; not at the top, for those who only look into a cache

    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    planes = torch.nn.functional.interpolate(planes, size=(shape[1], shape[0]), mode="bicubic", antialias=True)
    return np.ascontiguousarray(planes.permute(0, 2, 3, 1).numpy())


@lru_cache(maxsize=16)
def _store(folder: str) -> Store:
    """Of each cache one, whose files stay open."""
    return store_of(Path(folder))


def open_source(path: str | Path) -> MediaFile | CachedSample:
    """Opens the file, or the sample, of a row; both have ``audio`` and ``frames`` and are context managers."""
    return CachedSample(path) if is_address(str(path)) else MediaFile(path)
