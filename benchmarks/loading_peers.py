"""What one writes with PyAV, decord or torchcodec alone: frames and sound of a span, in a plain torch Dataset."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import av
import decord
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from avssl.data.clips import ClipDataset, center_square
from avssl.data.media.video import scaled_shape
from avssl.data.spans import frame_times

RATE = 16000
Decode = Callable[[str, float, float, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """A library's way: ``decode(path, start, seconds, times, size)`` -> (T, H, W, 3) frames, (S,) sound."""

    decode: Decode
    absent: Callable[[], str] = lambda: ""


class PeerClips(Dataset[tuple[Tensor, Tensor]]):
    """The clips that our dataset would give for ``keys``, decoded by a peer."""

    def __init__(self, peer: str, dataset: ClipDataset, keys: Sequence[tuple[int, int]]) -> None:
        self.peer, self.dataset, self.keys = peer, dataset, list(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)
        (epoch, index), dataset = self.keys[place], self.dataset
        row = dataset.manifest.row(index)
        span = dataset.spans(row, np.random.default_rng((dataset.seed, epoch, index)))[0]
        times = frame_times(span, dataset.num_frames)
        frames, sound = PEERS[self.peer].decode(str(row.path), span.start, span.available, times, dataset.frame_size)
        waveform = np.zeros(dataset.samples, dtype=np.float32)
        waveform[: len(sound)] = sound[: dataset.samples]
        square = np.ascontiguousarray(center_square(frames, dataset.frame_size).transpose(3, 0, 1, 2))
        return torch.from_numpy(square), torch.from_numpy(waveform)


def pyav(path: str, start: float, seconds: float, times: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    with av.open(path) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count = 1
        width, height = scaled_shape(video.codec_context.width, video.codec_context.height, size)
        container.seek(int(times[0] / video.time_base), stream=video)
        frames: list[np.ndarray] = []
        shown = None
        for frame in container.decode(video):
            while len(frames) < len(times) and shown is not None and frame.time > times[len(frames)]:
                frames.append(shown.to_ndarray(format="rgb24", width=width, height=height))
            if len(frames) == len(times):
                break
            shown = frame
        while len(frames) < len(times):
            frames.append(shown.to_ndarray(format="rgb24", width=width, height=height))
        container.seek(int(start / audio.time_base), stream=audio)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        pieces: list[np.ndarray] = []
        first = None
        for frame in container.decode(audio):
            first = frame.time if first is None else first
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            if frame.time > start + seconds:
                break
    offset = round((start - first) * RATE)
    return np.stack(frames), np.concatenate(pieces)[max(0, offset) : offset + round(seconds * RATE)]


def with_decord(path: str, start: float, seconds: float, times: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    with av.open(path) as container:  # the aspect, which decord does not tell before it decodes
        context = container.streams.video[0].codec_context
        width, height = scaled_shape(context.width, context.height, size)
    reader = decord.VideoReader(path, width=width, height=height, num_threads=1)
    indices = np.clip((times * reader.get_avg_fps()).astype(int), 0, len(reader) - 1)
    frames = reader.get_batch(indices.tolist()).asnumpy()
    sound = decord.AudioReader(path, sample_rate=RATE, mono=True)
    first = round(start * RATE)
    return frames, sound[first : min(first + round(seconds * RATE), sound.shape[1])].asnumpy()[0]


def torchcodec(path: str, start: float, seconds: float, times: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    from torchcodec.decoders import AudioDecoder, VideoDecoder
    from torchvision.transforms.v2.functional import resize

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_played_at(times.tolist()).data.permute(0, 3, 1, 2)
    sound = AudioDecoder(path, sample_rate=RATE, num_channels=1).get_samples_played_in_range(start, start + seconds)
    return resize(frames, [size], antialias=True).permute(0, 2, 3, 1).numpy(), sound.data[0].numpy()


def _torchcodec_absent() -> str:
    if importlib.util.find_spec("torchcodec") is None:
        return "not installed (pip install torchcodec; it needs FFmpeg's shared libraries)"
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return "cannot be imported: " + " ".join(str(error).split())[:200]
    return ""


decord.logging.set_level(decord.logging.QUIET)
PEERS: dict[str, Peer] = {
    "pyav": Peer(pyav),
    "decord": Peer(with_decord),
    "torchcodec": Peer(torchcodec, _torchcodec_absent),
}
