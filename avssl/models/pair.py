"""The audio-visual pair: two encoders and their projections into one joint embedding."""

from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

import mast
from avssl.models.video import VideoEncoder, create_video_encoder, own_size


def projection_head(inputs: int, outputs: int, hidden: int = 512) -> SimCLRProjectionHead:
    """SimCLR's two-layer MLP (Chen et al. 2020). Its batch norm matters: features of fresh encoders are nearly the same
    for all clips, and without it contrastive training stayed at chance for hundreds of steps."""
    return SimCLRProjectionHead(inputs, hidden, outputs)


class AudioVisualPair(nn.Module):
    """Audio encoder on log-mel spectrograms, video encoder on frames, and a projection head for each.

    The audio projection sees the encoder's tokens averaged over ``time_bins`` equal parts of the clip. With several, it
    can tell *when* something is heard; with one, it sees just the features that pretraining is for, which then have to
    hold everything: on the demo set that gave a better linear probe at the same retrieval.

    Args:
        audio: A ``mast`` model: (B, 1, F, T) -> tokens (B, F', T', A).
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T).
        video: Video encoder, (B, 3, T, H, W) in [0, 1] -> (B, V); has ``num_features``.
        embedding_dim: Width D of the joint embedding.
        time_bins: Parts of the clip that the audio projection tells apart.
    """

    def __init__(
        self,
        audio: mast.SpectrogramModel,
        frontend: mast.LogMel,
        video: VideoEncoder,
        embedding_dim: int = 128,
        time_bins: int = 1,
    ) -> None:
        super().__init__()
        if time_bins < 1:
            raise ValueError(f"time_bins: must be at least 1, got {time_bins}")
        self.audio = audio
        self.frontend = frontend
        self.video = video
        self.time_bins = time_bins
        self.audio_projection = projection_head(time_bins * audio.num_features, embedding_dim)
        self.video_projection = projection_head(video.num_features, embedding_dim)
        self.settings: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        *,
        audio: str = "mast_base",
        audio_options: dict[str, Any] | None = None,
        frontend_options: dict[str, Any] | None = None,
        video: str = "mvit_v2_s",
        video_options: dict[str, Any] | None = None,
        num_frames: int | None = None,
        crop_size: int | None = None,
        pretrained: bool = False,
        embedding_dim: int = 128,
        time_bins: int = 1,
    ) -> "AudioVisualPair":
        """Builds a pair from names; None is the video encoder's own number and size of frames.

        ``settings`` of the result rebuild it, which makes a checkpoint self-describing.
        """
        frames, side = own_size(video)
        num_frames, crop_size = num_frames or frames, crop_size or side
        arguments = {key: value for key, value in locals().items() if key not in ("cls", "frames", "side")}
        frontend = mast.LogMel(**(frontend_options or {}))
        pair = cls(
            mast.create_model(audio, num_classes=0, **(audio_options or {})),
            frontend,
            create_video_encoder(
                video, num_frames=num_frames, frame_size=crop_size, pretrained=pretrained, **(video_options or {})
            ),
            embedding_dim,
            time_bins,
        )
        pair.settings = arguments | {"pretrained": False}  # a checkpoint brings its weights itself
        return pair

    def forward(self, spectrogram: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Joint embeddings (B, D) of ``spectrogram`` (B, 1, F, T) and of ``frames`` (B, 3, T, H, W) in [0, 1]."""
        bins, _ = self.encode_audio(spectrogram)
        return self.audio_projection(bins), self.video_projection(self.video(frames))

    def encode_audio(self, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """What the audio projection takes (B, time_bins * A), and the features (B, A)."""
        by_time = self.audio.forward_grid(spectrogram).mean(dim=1).transpose(1, 2)  # (B, A, T')
        bins = F.adaptive_avg_pool1d(by_time, self.time_bins)
        return bins.flatten(1), by_time.mean(dim=2)

    def embed_audio(self, waveform: Tensor) -> Tensor:
        """Joint embeddings (B, D) of ``waveform`` (B, S), for retrieval."""
        return self.audio_projection(self.encode_audio(self.frontend(waveform))[0])

    def embed_video(self, frames: Tensor) -> Tensor:
        """Joint embeddings (B, D) of ``frames`` (B, 3, T, H, W) uint8: of the crop that the encoder was made for."""
        return self.video_projection(self.video(center_crop(frames, int(self.settings["crop_size"]))))


def center_crop(frames: Tensor, size: int) -> Tensor:
    """The central ``size`` x ``size`` of ``frames`` (B, 3, T, H, W) uint8, as float in [0, 1].

    Raises:
        ValueError: when the frames are smaller than that.
    """
    height, width = frames.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"frames of {height} x {width} are smaller than video.crop_size {size}: raise data.frame_size")
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size].contiguous().to(torch.get_default_dtype()) / 255
