"""What is evaluated: a pretrained pair, an audio encoder, or a classifier of sound, of video or of both."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from avssl.data.batch import Batch
from avssl.data.clips import Modality
from avssl.evaluation.embeddings import model_digest
from avssl.loading import Loaded, load
from avssl.models.classifier import Classifier
from avssl.models.pair import AudioVisualPair
from avssl.runs import TrainingSettings


@dataclass(frozen=True)
class EvaluatedModel:
    """A loaded checkpoint, on its device and in ``eval()``.

    Attributes:
        name: name of the checkpoint's run.
        features: batch on the device -> (B, D), what a linear head sees.
        sample_rate: of the waveforms that it takes, in Hz.
        modalities: what ``features`` takes.
        settings: of its training.
        audio: the audio encoder with its frontend; None of a classifier that sees.
        pair: both encoders with their projections; None otherwise.
        classifier: None of a pair or an encoder.
    """

    name: str
    features: Callable[[Batch], Tensor]
    sample_rate: int
    modalities: tuple[Modality, ...]
    settings: TrainingSettings
    audio: Loaded | None = None
    pair: AudioVisualPair | None = None
    classifier: Classifier | None = None

    @property
    def kind(self) -> str:
        """pair, encoder or classifier."""
        return "pair" if self.pair is not None else "classifier" if self.classifier is not None else "encoder"

    @property
    def frames(self) -> tuple[int, int] | None:
        """Number and side in pixels of the frames that its video encoder takes; None without one."""
        if self.pair is not None:
            return int(self.pair.settings["num_frames"]), int(self.pair.settings["crop_size"])
        seeing = self.classifier
        if seeing is None or seeing.num_frames is None or seeing.crop_size is None:
            return None
        return seeing.num_frames, seeing.crop_size

    @property
    def pad(self) -> str | None:
        """What stands behind the sound of a short clip; None without sound."""
        frontend = self.audio.frontend if self.audio is not None else None
        if frontend is None and self.classifier is not None:
            frontend = self.classifier.frontend
        return None if frontend is None else frontend.pad

    @property
    def labels(self) -> dict[str, list[str]]:
        """Classes of the classifier's heads; empty for none."""
        return self.classifier.labels if self.classifier is not None else {}

    @cached_property
    def digest(self) -> str:
        """Hash of the weights and of all settings that change what comes out."""
        settings: dict[str, object] = {"kind": self.kind, "labels": self.labels, "modalities": self.modalities}
        modules: list[nn.Module] = [module for module in (self.pair, self.classifier) if module is not None]
        if self.audio is not None:
            encoder, frontend = self.audio.audio_encoder, self.audio.frontend
            assert encoder is not None and frontend is not None
            settings |= {"model": encoder.name, "options": encoder.config, "frontend": frontend.config}
            modules.append(encoder)
        elif self.classifier is not None and self.classifier.frontend is not None:
            settings["frontend"] = self.classifier.frontend.config
        return model_digest(*modules, settings=settings)

    def random_encoder(self, seed: int) -> "EvaluatedModel | None":
        """The same audio encoder with random weights of its own; None of a classifier that sees."""
        if self.audio is None:
            return None
        random = self.audio.reinitialized(seed)
        return EvaluatedModel(
            f"{self.name}, random", random.features, random.sample_rate, ("audio",), random.settings, random
        )

    def random_pair(self, seed: int) -> AudioVisualPair:
        """The same pair with random weights of its own."""
        assert self.pair is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random = AudioVisualPair.build(**self.pair.settings)
        random.video.mean.copy_(self.pair.video.mean)
        random.video.std.copy_(self.pair.video.std)
        return random.to(next(self.pair.parameters()).device).eval()


def load_evaluated(checkpoint: Path, device: torch.device) -> EvaluatedModel:
    """Loads what ``--checkpoint`` names.

    Raises:
        FileNotFoundError: when there is nothing there.
        ValueError: when it is of no kind that can be evaluated.
    """
    loaded = load(checkpoint, device)
    audio = None if loaded.frontend is None or len(loaded.modalities) > 1 else loaded.audio_alone()
    parts = {"audio": audio, "pair": loaded.pair, "classifier": loaded.classifier}
    return EvaluatedModel(loaded.name, loaded.features, loaded.sample_rate, loaded.modalities, loaded.settings, **parts)
