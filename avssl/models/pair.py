"""The audio-visual pair: two encoders and the projections of the objectives that it is trained with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mast
from avssl.models.projection import Projection, build_heads
from avssl.models.video import VideoEncoder, create_video_encoder, own_size

# The only projection of a pair for which none are named, as of all pairs of before objectives had their own.
JOINT = "joint"


class AudioVisualPair(nn.Module):
    """Audio encoder on log-mel spectrograms, video encoder on frames, and projection heads for both.

    There is a projection for every objective that names one, each with a head for audio and one for video. Those of
    ``retrieval`` embed clips for retrieval.

    The audio heads see the encoder's tokens averaged over ``time_bins`` equal parts of the clip. With several, they
    can tell *when* something is heard; with one, they see just the features that pretraining is for, which then have to
    hold everything: on the demo set that gave a better linear probe at the same retrieval.

    Args:
        audio: A ``mast`` model: (B, 1, F, T) -> tokens (B, F', T', A).
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T).
        video: Video encoder, (B, 3, T, H, W) in [0, 1] -> (B, V); has ``num_features``.
        projections: By name; None is one named ``JOINT`` with the defaults of :class:`Projection`.
        retrieval: Name of the projection for retrieval; None is the first.
        embedding_dim: Width D of projections that have none of their own.
        time_bins: Parts of the clip that the audio heads tell apart, of projections that have none of their own.

    Attributes:
        projections: name -> modality -> head.
    """

    def __init__(
        self,
        audio: mast.SpectrogramModel,
        frontend: mast.LogMel,
        video: VideoEncoder,
        projections: Mapping[str, Projection] | None = None,
        retrieval: str | None = None,
        embedding_dim: int = 128,
        time_bins: int = 1,
    ) -> None:
        if audio.config.get("mask_padding"):
            raise ValueError("audio.options: mask_padding is for classifiers of sound alone; leave it out")
        super().__init__()
        if time_bins < 1:
            raise ValueError(f"time_bins: must be at least 1, got {time_bins}")
        settings = dict(projections or {JOINT: Projection()})
        if "pool" in audio.config:  # of AST: objectives train the patch tokens, so that features are those, too
            audio.config["pool"] = "patch"
        self.retrieval = retrieval or next(iter(settings))
        if self.retrieval not in settings:
            raise ValueError(f"retrieval: no projection {self.retrieval!r}; there are {', '.join(settings)}")
        self.audio = audio
        self.frontend = frontend
        self.video = video
        self.time_bins = {name: projection.time_bins or time_bins for name, projection in settings.items()}
        settings = {name: replace(each, dim=each.dim or embedding_dim) for name, each in settings.items()}
        inputs = {"audio": audio.num_features, "video": video.num_features}
        self.projections = build_heads(settings, inputs, time_bins)
        self.settings: dict[str, Any] = {}
        self.register_load_state_dict_pre_hook(_one_projection_for_all)

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
        projections: Mapping[str, Mapping[str, Any]] | None = None,
        retrieval: str | None = None,
    ) -> "AudioVisualPair":
        """Builds a pair from names; None is the video encoder's own number and size of frames. ``projections`` has the
        settings of a :class:`Projection` by name.

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
            {name: Projection(**each) for name, each in projections.items()} if projections else None,
            retrieval,
            embedding_dim,
            time_bins,
        )
        arguments["audio_options"] = pair.audio.rebuilding_options(audio_options or {})
        pair.settings = arguments | {"pretrained": False}  # a checkpoint brings its weights itself
        return pair

    def forward(self, spectrogram: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Retrieval's embeddings (B, D) of ``spectrogram`` (B, 1, F, T) and ``frames`` (B, 3, T, H, W) in [0, 1]."""
        by_time = self.encode_audio(spectrogram)
        return self.project_audio(by_time, self.retrieval), self.project_video(self.video(frames), self.retrieval)

    def encode_audio(self, spectrogram: Tensor) -> Tensor:
        """The tokens of ``spectrogram`` (B, 1, F, T), averaged over frequency: (B, A, T'). Their mean over time are the
        features (B, A)."""
        return self.audio.forward_grid(spectrogram).mean(dim=1).transpose(1, 2)

    def project_audio(self, by_time: Tensor, name: str) -> Tensor:
        """Embeddings (B, D) by the projection ``name`` of what :meth:`encode_audio` returns."""
        bins = F.adaptive_avg_pool1d(by_time, self.time_bins[name])
        return self.head(name, "audio")(bins.flatten(1))

    def project_video(self, features: Tensor, name: str) -> Tensor:
        """Embeddings (B, D) by the projection ``name`` of features (B, V)."""
        return self.head(name, "video")(features)

    def head(self, name: str, modality: str) -> nn.Module:
        """The head of a projection for "audio" or "video"."""
        return self.projections.get_submodule(f"{name}.{modality}")

    def embed_audio(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """Embeddings (B, D) of ``waveform`` (B, S), of which ``samples`` (B,) are sound, for retrieval."""
        return self.project_audio(self.encode_audio(self.frontend(waveform, samples)), self.retrieval)

    def embed_video(self, frames: Tensor) -> Tensor:
        """Embeddings (B, D) of ``frames`` (B, 3, T, H, W) uint8, for retrieval: of the crop that the encoder was made
        for."""
        features = self.video(center_crop(frames, int(self.settings["crop_size"])))
        return self.project_video(features, self.retrieval)

    def embed_locations(self, frames: Tensor) -> Tensor:
        """Embeddings (B, H', W', D) of the locations in ``frames`` (B, 3, T, H, W) uint8, for retrieval, in that crop.

        Each is the embedding that a clip would have that shows everywhere what this place shows.
        """
        frames = center_crop(frames, int(self.settings["crop_size"]))
        return self.project_video(self.video.forward_grid(frames, time=False)[:, 0], self.retrieval)


def _one_projection_for_all(pair: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Weights of a pair whose objectives shared its only projection, of before they had their own: its names are new.

    Raises:
        RuntimeError: ``pair`` has several projections.
    """
    assert isinstance(pair, AudioVisualPair)
    old = {modality: f"{prefix}{modality}_projection." for modality in ("audio", "video")}
    if not any(key.startswith(tuple(old.values())) for key in state):
        return
    if len(pair.projections) > 1:
        first, *others = pair.projections
        raise RuntimeError(
            f"its objectives shared one projection, here {', '.join(pair.projections)} have their own: give "
            f"{' and '.join(others)} the option projection: {first}, which shares it"
        )
    (name,) = pair.projections
    for modality, beginning in old.items():
        for key in [key for key in state if key.startswith(beginning)]:
            state[f"{prefix}projections.{name}.{modality}.{key.removeprefix(beginning)}"] = state.pop(key)


def check_frames(frames: Tensor) -> None:
    """Raises ValueError where they are not (B, 3, T, H, W) uint8: floats would be divided by 255 once more."""
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != 3:
        got = f"{str(frames.dtype).removeprefix('torch.')} {tuple(frames.shape)}"
        raise ValueError(f"frames must be uint8 RGB as they are decoded, (B, 3, T, H, W), got {got}")


def center_crop(frames: Tensor, size: int) -> Tensor:
    """The central ``size`` x ``size`` of ``frames`` (B, 3, T, H, W) uint8, as float in [0, 1].

    Raises:
        ValueError: other frames than these, or smaller ones.
    """
    check_frames(frames)
    height, width = frames.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"frames of {height} x {width} are smaller than video.crop_size {size}: raise data.frame_size")
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size].contiguous().to(torch.get_default_dtype()) / 255
