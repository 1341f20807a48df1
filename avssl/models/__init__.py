"""Video encoders, projection heads, the audio-visual pair and the audio classifier."""

from avssl.models.classifier import AudioClassifier
from avssl.models.pair import AudioVisualPair
from avssl.models.video import VideoEncoder, create_video_encoder, list_video_encoders

__all__ = ["AudioClassifier", "AudioVisualPair", "VideoEncoder", "create_video_encoder", "list_video_encoders"]
