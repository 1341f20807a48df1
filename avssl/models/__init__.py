"""Video encoders, projection heads, the audio-visual pair, and classifiers of audio, of video and of both."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avssl.models.classifier import AudioClassifier, Classifier
    from avssl.models.pair import AudioVisualPair
    from avssl.models.video import VideoEncoder, create_video_encoder, list_video_encoders
    from avssl.models.visual_classifier import AudioVisualClassifier, VideoClassifier

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
_MODULES = ("classifier", "pair", "video", "visual_classifier")


def __getattr__(name: str) -> Any:
    """What the modules have, imported at first use: the settings are read without torch."""
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
