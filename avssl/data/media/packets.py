"""Frames by their packets: a span is demuxed first, and decoded is only what its wanted frames depend on.

The packets say when every frame begins before any is decoded. So decoding starts at the last keyframe before a wanted
frame and leaves out what lies between two wanted ones where a keyframe does, and frames that neither are wanted nor
serve others as a reference (most B-frames) are passed over by the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from avssl.data.media.container import REORDER, frame_indices, start_of
from avssl.data.media.orientation import upright

# A container may index keyframes only roughly: if a seek lands too late, the next one aims so many seconds earlier.
_RUN_UP = 1.0


class PacketError(Exception):
    """The packets do not tell enough, or not every wanted frame came out: another reader has to try."""


class SequentialError(PacketError):
    """A keyframe of the container does not stand alone: only decoding from the file's beginning is right."""


def read_by_packets(
    container: InputContainer,
    stream: VideoStream,
    wanted: np.ndarray,
    original: tuple[int, int],
    shape: tuple[int, int],
    path: str | Path,
) -> np.ndarray:
    """The frames on screen at ``wanted`` (T,) seconds after the file's start, (T, H, W, 3) uint8 RGB, upright.

    Args:
        container: Open; it is left somewhere behind the span.
        stream: One of it, with an open or unopened decoder.
        wanted: In any order.
        original: (width, height) of the pictures, from the header.
        shape: (width, height) of the result, before pictures are turned upright.
        path: The file's name, for errors.

    Raises:
        PacketError: see there.
        SequentialError: likewise.
        MediaError: "frame outside video".
    """
    packets = _span(container, stream, float(wanted.min()), float(wanted.max()))
    stamps, starts = _times(container, stream, packets)
    chosen = stamps[frame_indices(starts, wanted, path)]
    images: dict[int, np.ndarray] = {}
    reformat, missing = VideoReformatter(), set(chosen.tolist())
    for run in _runs(packets, missing):
        intact = run[0].is_discard  # an edit list hides the picture, so that nothing can be said of it
        for frame in decode_run(stream, run, missing):
            if (frame.width, frame.height) != original:  # or the parameters of another part of the file
                raise SequentialError("pictures of more than one size")
            if frame.pts == run[0].pts:
                intact = frame.pict_type not in (PictureType.P, PictureType.B)
            if frame.pts is not None and frame.pts in missing:
                missing.discard(frame.pts)
                scaled = reformat.reformat(frame, shape[0], shape[1], "rgb24", interpolation="BICUBIC")
                images[frame.pts] = upright(scaled.to_ndarray(), frame)
        if not intact:  # intra refresh: the picture is renewed stripe by stripe, and no frame stands alone
            raise SequentialError("a keyframe of the container is none of the codec")
    if missing:
        raise PacketError(f"{len(missing)} frames did not come out of the decoder")
    return np.stack([images[stamp] for stamp in chosen.tolist()])


def packet_starts(container: InputContainer, stream: VideoStream, first: float, last: float) -> np.ndarray:
    """Start of every frame from the last keyframe before ``first`` until after ``last``, (N,) ascending, in seconds.

    Raises:
        PacketError: the packets do not tell.
    """
    return _times(container, stream, _span(container, stream, first, last))[1]


def _times(container: InputContainer, stream: VideoStream, packets: list[Packet]) -> tuple[np.ndarray, np.ndarray]:
    """Start of every frame in the order of display: (N,) int64 ticks, and (N,) seconds after the file's start."""
    base = stream.time_base
    assert base is not None
    stamps = np.asarray([packet.pts for packet in packets if not packet.is_discard], dtype=np.int64)
    if not len(stamps):
        raise PacketError("no packet in the span")
    stamps.sort()
    return stamps, stamps * base.numerator / base.denominator - start_of(container)


def _span(container: InputContainer, stream: VideoStream, first: float, last: float) -> list[Packet]:
    """The packets from the last keyframe before ``first`` on, as far as frames may be on screen until ``last``."""
    base, origin = stream.time_base, start_of(container)
    assert base is not None
    for target in dict.fromkeys((first, max(0.0, first - _RUN_UP), 0.0)):
        try:
            container.seek(int((target + origin) / base), stream=stream)
            packets = _packets(container, stream, int((last + origin) / base) + 1)
        except av.FFmpegError as error:
            raise PacketError(str(error)) from error
        # Not the earliest frame: those stored after the keyframe and shown before it may refer to what was not read.
        if packets and packets[0].is_keyframe and (_time(packets[0]) * base - origin <= first or target == 0.0):
            return packets
    raise PacketError("no keyframe before the span")


def _packets(container: InputContainer, stream: VideoStream, end: int) -> list[Packet]:
    """Packets up to the first of which all later ones are shown after ``end``, in ticks of the stream."""
    packets: list[Packet] = []
    beyond = 0
    for packet in container.demux(stream):
        if not packet.size:
            break
        if packet.pts is None:
            raise PacketError("a packet without a time")
        if packet.has_sidedata("new_extradata"):  # a decoder that skips or repeats it reads garbage
            raise SequentialError("the decoder's parameters change within the file")
        packets.append(packet)
        beyond += packet.pts > end
        if beyond > REORDER:
            break
    return packets


def _time(packet: Packet) -> int:
    """When it is shown, in ticks of its stream."""
    assert packet.pts is not None  # `_packets` has refused others
    return packet.pts


def _runs(packets: list[Packet], wanted: set[int]) -> Iterator[list[Packet]]:
    """Stretches of packets that have to be decoded for the ``wanted`` times, each from a keyframe on."""
    groups: list[list[Packet]] = []
    for packet in packets:
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(packet)
    run: list[Packet] = []
    for index, group in enumerate(groups):
        needed = [k for k, packet in enumerate(group) if packet.pts in wanted]
        if not needed:
            continue
        if not run or run[-1] is not groups[index - 1][-1]:
            if run:
                yield run
            # Frames that are stored after a keyframe and shown before it may refer to the group before.
            leading = index > 0 and any(_time(group[k]) < _time(group[0]) for k in needed)
            run = list(groups[index - 1]) if leading else []
        run += group[: needed[-1] + 1]
    if run:
        yield run


def decode_run(stream: VideoStream, packets: list[Packet], wanted: set[int]) -> Iterator[av.VideoFrame]:
    """Frames of packets in the order of decoding, from a keyframe on; of others than ``wanted`` only where needed.

    Args:
        stream: Theirs.
        packets: Consecutive ones.
        wanted: Times of presentation, in the stream's units.

    Raises:
        PacketError: FFmpeg cannot decode them.
    """
    context = stream.codec_context
    context.flush_buffers()
    skipping: bool | None = None
    try:
        for packet in [*packets, None]:
            skip = packet is not None and packet.pts not in wanted
            if skip != skipping:
                context.skip_frame, skipping = "NONREF" if skip else "DEFAULT", skip
            yield from context.decode(packet)
    except av.FFmpegError as error:
        raise PacketError(str(error)) from error
    finally:
        context.skip_frame = "DEFAULT"
        context.flush_buffers()
