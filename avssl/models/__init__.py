"""Video encoders, projection heads, the audio-visual pair, and classifiers of audio, of video and of both."""

from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.pair import AudioVisualPair
from avssl.models.video import VideoEncoder, create_video_encoder, list_video_encoders
from avssl.models.visual_classifier import AudioVisualClassifier, VideoClassifier
from avssl.plugins import import_wanted
from mast import registry

# An audio encoder that mast does not know may be of a plug-in.
registry.more_models.append(import_wanted)

__all__ = [
    "AudioClassifier",
    "AudioVisualClassifier",
    "AudioVisualPair",
    "Classifier",
    "VideoClassifier",
    "VideoEncoder",
    "create_video_encoder",
    "list_video_encoders",
]
