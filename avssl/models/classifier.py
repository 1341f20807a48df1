"""Classification: what all classifiers share, and the one of audio, whose encoder stays a plain ``mast`` model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

import mast
from avssl.data.batch import Batch
from avssl.models.pair import center_crop, check_frames
from avssl.models.video import VideoEncoder
from mast.frontend import all_samples


@dataclass(frozen=True)
class Encoded:
    """What B clips become on the way to the head.

    Attributes:
        features: (B, D) what the head sees.
        audio: (B, A) features of the audio encoder by itself; None without audio.
        video: (B, V) features of the video encoder by itself; None without video.
    """

    features: Tensor
    audio: Tensor | None = None
    video: Tensor | None = None


class Classifier(nn.Module, ABC):
    """Encoders and one linear head, whose outputs are cut into the heads of the data in the order of ``labels``.

    Attributes:
        modalities: What it takes: audio, video or both.
        labels: Class names of each head.
        num_features: Width D of what the head sees.
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T); None without audio.
        num_frames: Frames of a clip that its video encoder takes; None without video.
        crop_size: Side of these frames in pixels; None without video.
    """

    modalities: ClassVar[tuple[Literal["audio", "video"], ...]]
    labels: dict[str, list[str]]
    num_features: int
    frontend: mast.LogMel | None
    num_frames: int | None
    crop_size: int | None

    @property
    def audio_encoder(self) -> mast.SpectrogramModel | None:
        """The audio encoder; None without audio."""
        return None

    @property
    def video_encoder(self) -> VideoEncoder | None:
        """The video encoder; None without video."""
        return None

    @property
    def trained_in_blocks(self) -> list[nn.Module]:
        """The parts that are made of repeated blocks: the encoders, and what a subclass has beside them."""
        return [encoder for encoder in (self.audio_encoder, self.video_encoder) if encoder is not None]

    @property
    @abstractmethod
    def head_layer(self) -> nn.Module:
        """The head: features (B, D) -> outputs (B, all classes)."""

    @abstractmethod
    def encode(self, spectrogram: Tensor | None, frames: Tensor | None, valid: Tensor | None = None) -> Encoded:
        """Features of ``spectrogram`` (B, 1, F, T) and ``frames`` (B, 3, T, H, W) in [0, 1]; one it has no use for may
        be None. ``valid`` (B,): frames of the spectrogram that have sound, see ``mast.SpectrogramModel.features``."""

    def encode_audio(self, spectrogram: Tensor) -> Tensor:
        """Features (B, A) of the audio encoder by itself."""
        raise ValueError(f"{type(self).__name__} has no audio encoder")

    def encode_video(self, frames: Tensor) -> Tensor:
        """Features (B, V) of the video encoder by itself."""
        raise ValueError(f"{type(self).__name__} has no video encoder")

    def features(self, batch: Batch) -> Tensor:
        """Features (B, D), what the head sees, of a batch; see :meth:`encode_batch`."""
        return self.encode_batch(batch).features

    def encode_batch(self, batch: Batch) -> Encoded:
        """A batch as it is, on this model's device: whole clips, centre crops of the frames.

        Raises:
            ValueError: when the batch lacks a modality, or its frames are too few, too many or too small.
        """
        spectrogram = frames = valid = None
        if self.frontend is not None:
            if batch.audio is None:
                raise ValueError("this classifier needs audio, which the batch does not have")
            spectrogram, valid = self.frontend(batch.audio, batch.samples), self.valid_frames(batch)
        if self.crop_size is not None:
            if batch.video is None:
                raise ValueError("this classifier needs video, which the batch does not have")
            check_frames(batch.video)
            if batch.video.shape[2] != self.num_frames:
                raise ValueError(
                    f"data.num_frames: this classifier was made for {self.num_frames} frames a clip, "
                    f"not {batch.video.shape[2]}"
                )
            frames = center_crop(batch.video, self.crop_size)
        return self.encode(spectrogram, frames, valid)

    def valid_frames(self, batch: Batch) -> Tensor | None:
        """(B,) frames of the spectrograms of a batch that have sound; None where it does not tell."""
        if self.frontend is None or batch.audio is None or batch.samples is None:
            return None
        return self.frontend.valid_frames(batch.samples, batch.audio.shape[1])

    def outputs(self, features: Tensor) -> Tensor:
        """Logits (B, all classes) of ``features`` (B, D)."""
        return self.head_layer(features)

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Cuts ``outputs`` (..., all classes) into heads."""
        sizes = [len(names) for names in self.labels.values()]
        return dict(zip(self.labels, outputs.split(sizes, dim=-1), strict=True))


def count_outputs(labels: dict[str, list[str]]) -> int:
    """Classes of all heads together.

    Raises:
        ValueError: when there is none.
    """
    outputs = sum(len(names) for names in labels.values())
    if not outputs:
        raise ValueError("a classifier needs at least one head with classes; the data has none")
    return outputs


class AudioClassifier(Classifier):
    """An audio encoder with a linear head.

    Several heads (say verb and noun) are slices of one linear layer in the order of ``labels``: the encoder stays a
    plain ``mast`` model, which ``mast.from_pretrained`` loads without avssl.

    Args:
        encoder: A ``mast`` model; its head is replaced unless it has just the right number of outputs already.
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T).
        labels: Class names of each head.
    """

    modalities = ("audio",)
    frontend: mast.LogMel

    def __init__(self, encoder: mast.SpectrogramModel, frontend: mast.LogMel, labels: dict[str, list[str]]) -> None:
        super().__init__()
        self.encoder = encoder
        self.frontend = frontend
        self.labels = labels
        self.num_features, self.num_frames, self.crop_size = encoder.num_features, None, None
        outputs = count_outputs(labels)
        if encoder.num_classes != outputs:
            encoder.reset_classifier(outputs)

    @property
    def audio_encoder(self) -> mast.SpectrogramModel:
        """The encoder."""
        return self.encoder

    @property
    def head_layer(self) -> nn.Module:
        """The encoder's own head."""
        return self.encoder.head

    def forward(self, spectrogram: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (B, classes) by head of ``spectrogram`` (B, 1, F, T), of which ``valid`` (B,) frames have sound."""
        return self.split(self.encoder.head(self.encode_audio(spectrogram, valid)))

    def classify(self, waveform: Tensor, samples: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (B, classes) by head of ``waveform`` (B, S), of which ``samples`` (B,) are sound."""
        return self.split(self.encoder.head(self.embed_audio(waveform, samples)))

    def embed_audio(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """Features (B, D) of ``waveform`` (B, S), of which ``samples`` (B,) are sound, that the head sees."""
        samples = all_samples(waveform) if samples is None else samples
        valid = self.frontend.valid_frames(samples, waveform.shape[1])
        return self.encode_audio(self.frontend(waveform, samples), valid)

    def encode(self, spectrogram: Tensor | None, frames: Tensor | None = None, valid: Tensor | None = None) -> Encoded:
        """See :meth:`Classifier.encode`."""
        assert spectrogram is not None
        features = self.encode_audio(spectrogram, valid)
        return Encoded(features, audio=features)

    def encode_audio(self, spectrogram: Tensor, valid: Tensor | None = None) -> Tensor:
        """Features (B, D) of ``spectrogram`` (B, 1, F, T), of which ``valid`` (B,) frames have sound."""
        return self.encoder.features(spectrogram, valid)
