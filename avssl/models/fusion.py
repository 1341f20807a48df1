"""Fusion of audio and video: late, by their features, or through a few bottleneck tokens (MBT)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FREQUENCIES = 6
POSITION_WIDTH = 2 * FREQUENCIES  # numbers for each axis


def position_code(grid: Sequence[int], like: Tensor) -> Tensor:
    """Sines and cosines of each cell's position on ``grid``, (...grid, axes * ``POSITION_WIDTH``).

    They are half a wave to 16 waves across each axis, whatever the number of its cells. The device and type are those
    of ``like``.
    """
    octaves = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=like.device, dtype=like.dtype)
    axes = [(torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size for size in grid]
    angles = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[..., None] * octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class LateFusion(nn.Module):
    """Puts the features of both encoders side by side; nothing is learned here.

    A linear head on them is late fusion as in MBT (Nagrani et al. 2021): the logits of one linear classifier for each
    modality, averaged, with the factor 1/2 in the weights. What is heard and what is seen therefore add up in a logit:
    a class that depends on how the two go together (sound A with picture A or B with B, say) is beyond it.

    Args:
        audio: Width A of the audio features.
        video: Width V of the video features.
    """

    def __init__(self, audio: int, video: int) -> None:
        super().__init__()
        self.num_features = audio + video

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """(B, A) and (B, V) -> (B, A + V)."""
        return torch.cat([audio, video], dim=1)


class FusionLayer(nn.Module):
    """One transformer layer of each modality over its own tokens and the bottleneck tokens, which both share.

    MBT, eq. 8 and 9: each modality updates the bottleneck by itself, and the mean of the two goes on. Without
    bottleneck tokens these are just two layers that know nothing of each other.

    Args:
        width: Channels W of all tokens.
        heads: Attention heads.
        dropout: Dropout within the layers.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.audio = _transformer_layer(width, heads, dropout)
        self.video = _transformer_layer(width, heads, dropout)

    def forward(self, audio: Tensor, video: Tensor, bottleneck: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N_a, W), (B, N_v, W) and (B, N_b, W) -> the same, N_b being 0 where nothing is exchanged."""
        count = bottleneck.shape[1]
        if not count:
            return self.audio(audio), self.video(video), bottleneck
        heard = self.audio(torch.cat([audio, bottleneck], dim=1))
        seen = self.video(torch.cat([video, bottleneck], dim=1))
        return heard[:, :-count], seen[:, :-count], (heard[:, -count:] + seen[:, -count:]) / 2


class BottleneckFusion(nn.Module):
    """Transformer layers upon both encoders that exchange what they know through a few bottleneck tokens (MBT).

    The tokens of each encoder are projected to one width and told their place on the encoder's grid. Each modality has
    transformer layers of its own; from layer ``start`` on, they attend over its tokens and the bottleneck's (see
    :class:`FusionLayer`). As both encoders keep their shapes, any two can be fused, and multiscale ones at their last,
    coarsest stage.

    Nagrani et al. 2021, "Attention Bottlenecks for Multimodal Fusion"; the fused part of MBT's layers is
    here, the unimodal part is the encoders. MBT gives both class tokens to one linear classifier and averages the
    logits: here the mean token of each modality takes the part of its class token, and as the classifier is linear, the
    mean of the two is the feature vector that it sees.

    Args:
        audio: Width A of the audio tokens.
        video: Width V of the video tokens.
        tokens: Bottleneck tokens; MBT's 4.
        width: Width W of the fusion layers.
        depth: Layers of each modality.
        start: First layer that exchanges; the layers before it see their own modality only.
        heads: Attention heads.
        dropout: Dropout within the layers.

    Raises:
        ValueError: when nothing could be learned from the other modality.
    """

    def __init__(
        self,
        audio: int,
        video: int,
        *,
        tokens: int = 4,
        width: int = 256,
        depth: int = 3,
        start: int = 0,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if tokens < 1:
            raise ValueError(f"bottleneck.tokens: must be at least 1, got {tokens}; without any, use fusion late")
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"bottleneck.width: {width} must be a positive multiple of bottleneck.heads, {heads}")
        if start < 0 or depth - start < 2:
            raise ValueError(
                f"bottleneck.start: {start} must be from 0 to bottleneck.depth - 2 = {depth - 2}: it takes one layer "
                "to write to the bottleneck and another to read what the other modality wrote"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"bottleneck.dropout: must lie in [0, 1), got {dropout}")
        self.num_features, self.start = width, start
        self.audio_input, self.audio_place = _input(audio, width), nn.Linear(2 * POSITION_WIDTH, width, bias=False)
        self.video_input, self.video_place = _input(video, width), nn.Linear(3 * POSITION_WIDTH, width, bias=False)
        self.bottleneck = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))
        self.layers = nn.ModuleList(FusionLayer(width, heads, dropout) for _ in range(depth))
        self.audio_norm, self.video_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def no_weight_decay(self) -> set[str]:
        """The bottleneck tokens are an input, not a weight."""
        return {"bottleneck"}

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """Tokens (B, F', T', A) of the audio and (B, T'', H, W, V) of the video -> features (B, width)."""
        heard, seen = self.exchange(audio, video)
        return (heard + seen) / 2

    def exchange(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, width) of each modality, each knowing of the other what came through the bottleneck."""
        heard = _tokens(audio, self.audio_input, self.audio_place)
        seen = _tokens(video, self.video_input, self.video_place)
        shared = self.bottleneck.to(heard.dtype).expand(len(heard), -1, -1)
        for number, layer in enumerate(self.layers):
            if number < self.start:
                heard, seen, _ = layer(heard, seen, shared[:, :0])
            else:
                heard, seen, shared = layer(heard, seen, shared)
        return self.audio_norm(heard).mean(dim=1), self.video_norm(seen).mean(dim=1)


def _transformer_layer(width: int, heads: int, dropout: float) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )


def _input(inputs: int, width: int) -> nn.Module:
    """The norm makes up for encoders that end in a ReLU, at any scale, beside those that end in a norm."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width))


def _tokens(grid: Tensor, project: nn.Module, place: nn.Linear) -> Tensor:
    """(B, *places, C) -> tokens (B, N, width) with their places."""
    places: Sequence[int] = grid.shape[1:-1]
    return (project(grid) + place(position_code(places, place.weight))).flatten(1, -2)
