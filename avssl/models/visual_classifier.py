"""Classifiers that see: of video, and of audio and video together."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

import mast
from avssl.data.batch import Batch
from avssl.models.classifier import Classifier, Encoded, count_outputs
from avssl.models.fusion import BottleneckFusion, LateFusion
from avssl.models.video import VideoEncoder, create_video_encoder

Fusion = Literal["late", "bottleneck"]


class VisualClassifier(Classifier):
    """What both have in common: a video encoder, a linear head on ``num_features``, and settings that rebuild them.

    Args:
        video: Video encoder, frames (B, 3, T, H, W) in [0, 1] -> (B, V).
        labels: Class names of each head.
        num_features: Width D of what the head sees.
        num_frames: Frames T that the video encoder was made for.
        crop_size: Side of these frames in pixels.
    """

    num_frames: int
    crop_size: int

    def __init__(
        self, video: VideoEncoder, labels: dict[str, list[str]], num_features: int, num_frames: int, crop_size: int
    ) -> None:
        super().__init__()
        self.video, self.labels, self.num_features = video, labels, num_features
        self.num_frames, self.crop_size = num_frames, crop_size
        self.frontend = None
        self.head = nn.Linear(num_features, count_outputs(labels))

    @property
    def video_encoder(self) -> VideoEncoder:
        """The video encoder."""
        return self.video

    @property
    def head_layer(self) -> nn.Module:
        """The linear head."""
        return self.head

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values from which :func:`build_visual_classifier` makes the same module with random weights."""
        return {
            "labels": self.labels,
            "video": self.video.name,
            "video_options": self.video.options,
            "num_frames": self.num_frames,
            "crop_size": self.crop_size,
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits (B, classes) by head of a batch as it is, see :meth:`Classifier.features`."""
        return self.split(self.outputs(self.features(batch)))

    def encode_video(self, frames: Tensor) -> Tensor:
        """Features (B, V) of ``frames`` (B, 3, T, H, W) in [0, 1]."""
        return self.video(frames)


class VideoClassifier(VisualClassifier):
    """A video encoder with a linear head. Arguments as in :class:`VisualClassifier`."""

    modalities = ("video",)

    def __init__(self, video: VideoEncoder, labels: dict[str, list[str]], *, num_frames: int, crop_size: int) -> None:
        super().__init__(video, labels, video.num_features, num_frames, crop_size)

    def encode(self, spectrogram: Tensor | None, frames: Tensor | None, valid: Tensor | None = None) -> Encoded:
        """See :meth:`Classifier.encode`."""
        assert frames is not None
        features = self.encode_video(frames)
        return Encoded(features, video=features)


class AudioVisualClassifier(VisualClassifier):
    """An audio and a video encoder, fused, with a linear head.

    Args:
        audio: A ``mast`` model; its own head is taken away.
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T).
        video: Video encoder; one with a map of features where the fusion is bottleneck.
        labels: Class names of each head.
        num_frames: Frames T that the video encoder was made for.
        crop_size: Side of these frames in pixels.
        fusion: late (:class:`~avssl.models.fusion.LateFusion`) or bottleneck.
        bottleneck: Keyword arguments of :class:`~avssl.models.fusion.BottleneckFusion`, where it is bottleneck.
    """

    modalities = ("audio", "video")
    frontend: mast.LogMel

    def __init__(
        self,
        audio: mast.SpectrogramModel,
        frontend: mast.LogMel,
        video: VideoEncoder,
        labels: dict[str, list[str]],
        *,
        num_frames: int,
        crop_size: int,
        fusion: Fusion = "late",
        bottleneck: Mapping[str, Any] | None = None,
    ) -> None:
        mix: LateFusion | BottleneckFusion
        if fusion == "late":
            mix = LateFusion(audio.num_features, video.num_features)
        else:
            if video.feature_map is None:
                raise ValueError(f"fusion: bottleneck needs a map of features, which video encoder {video.name} lacks")
            mix = BottleneckFusion(audio.num_features, video.feature_map.width, **(bottleneck or {}))
        super().__init__(video, labels, mix.num_features, num_frames, crop_size)
        if audio.config.get("mask_padding"):
            raise ValueError("audio.options: mask_padding is for classifiers of sound alone; leave it out")
        if audio.num_classes:
            audio.reset_classifier(0)
        self.audio, self.frontend, self.fusion = audio, frontend, mix
        self.bottleneck = dict(bottleneck or {})

    @property
    def audio_encoder(self) -> mast.SpectrogramModel:
        """The audio encoder."""
        return self.audio

    @property
    def trained_in_blocks(self) -> list[nn.Module]:
        """See :attr:`Classifier.trained_in_blocks`."""
        return [*super().trained_in_blocks, *([self.fusion] if isinstance(self.fusion, BottleneckFusion) else [])]

    @property
    def settings(self) -> dict[str, Any]:
        """See :attr:`VisualClassifier.settings`."""
        late = isinstance(self.fusion, LateFusion)
        return super().settings | {
            "audio": self.audio.name,
            "audio_options": {key: value for key, value in self.audio.config.items() if key != "num_classes"},
            "frontend": self.frontend.config,
            "fusion": "late" if late else "bottleneck",
            "bottleneck": None if late else self.bottleneck,
        }

    def encode(self, spectrogram: Tensor | None, frames: Tensor | None, valid: Tensor | None = None) -> Encoded:
        """See :meth:`Classifier.encode`."""
        assert spectrogram is not None and frames is not None
        if isinstance(self.fusion, LateFusion):
            heard, seen = self.encode_audio(spectrogram), self.encode_video(frames)
            return Encoded(self.fusion(heard, seen), heard, seen)
        grid = self.audio.forward_grid(spectrogram)
        seen, places = self.video.forward_map(frames)
        return Encoded(self.fusion(grid, places), grid.mean(dim=(1, 2)), seen)

    def encode_audio(self, spectrogram: Tensor) -> Tensor:
        """Features (B, A) of ``spectrogram`` (B, 1, F, T): where tokens are fused, the mean of those."""
        if isinstance(self.fusion, LateFusion):
            return self.audio.forward_head(self.audio.forward_features(spectrogram), pre_logits=True)
        return self.audio.forward_grid(spectrogram).mean(dim=(1, 2))


def build_visual_classifier(
    *,
    labels: dict[str, list[str]],
    video: str,
    num_frames: int,
    crop_size: int,
    video_options: Mapping[str, Any] | None = None,
    audio: str | None = None,
    audio_options: Mapping[str, Any] | None = None,
    frontend: Mapping[str, Any] | None = None,
    fusion: Fusion = "late",
    bottleneck: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> VisualClassifier:
    """A classifier from names, with random weights: of video, and of audio too where ``audio`` is given.

    Args:
        labels: Class names of each head.
        video: Name of the video encoder.
        num_frames: Frames of a clip.
        crop_size: Side of the frames in pixels.
        video_options: Keyword arguments of the video encoder.
        audio: Name of the audio encoder; None for a classifier of video.
        audio_options: Keyword arguments of the audio encoder.
        frontend: Keyword arguments of the frontend.
        fusion: late or bottleneck.
        bottleneck: Keyword arguments of the bottleneck fusion.
        pretrained: Start the video encoder from its Kinetics weights.
    """
    encoder = create_video_encoder(
        video, num_frames=num_frames, frame_size=crop_size, pretrained=pretrained, **(video_options or {})
    )
    if audio is None:
        return VideoClassifier(encoder, labels, num_frames=num_frames, crop_size=crop_size)
    return AudioVisualClassifier(
        mast.create_model(audio, num_classes=0, **(audio_options or {})),
        mast.LogMel(**(frontend or {})),
        encoder,
        labels,
        num_frames=num_frames,
        crop_size=crop_size,
        fusion=fusion,
        bottleneck=bottleneck,
    )
