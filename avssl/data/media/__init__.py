"""Readers of media files: what is in them, their sound, their frames.

PyAV (FFmpeg) reads headers, sound and nearly all frames: by their packets where these tell the times (MP4, MOV,
Matroska, WebM, FLV), else one after the other. decord reads frames where it was found exact: AVI with codecs that have
no B-frames. There is no decord for some machines; PyAV reads those frames, too.
decord's own audio reader leaks memory and descriptors and returns short audio from corrupt files without a word, so it
is not used.
"""

import av

from avssl.data.media.audio import AudioClip, Channel
from avssl.data.media.errors import MediaError
from avssl.data.media.file import MediaFile, read_audio, read_frames
from avssl.data.media.probe import MediaInfo, probe

__all__ = ["AudioClip", "Channel", "MediaError", "MediaFile", "MediaInfo", "probe", "read_audio", "read_frames"]

# FFmpeg reports every odd packet; what matters comes back as a MediaError.
av.logging.set_level(av.logging.PANIC)
