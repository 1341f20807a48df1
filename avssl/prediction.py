"""Classes over time of sound of any length: a classifier of audio on sliding windows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import mast
from avssl.data.media import Channel, MediaError
from avssl.data.media.audio import check_channel
from avssl.data.windows import Window, from_first_sound, sliding_windows
from avssl.loading import Loaded
from avssl.models.classifier import AudioClassifier


@dataclass(frozen=True)
class Prediction:
    """``scores``: (classes,) by head, 0 to 1, of the seconds ``start`` to ``end``."""

    start: float
    end: float
    scores: Mapping[str, np.ndarray]


class SlidingLogMel:
    """Cuts the spectrograms of the windows of one recording out of the frames of the whole.

    They equal those of the windows by themselves where every window begins at a frame: see :meth:`applies`. Frames
    before the window at hand are let go.

    Args:
        frontend: Of the model.
        hop: Seconds from window to window, less than the windows last.

    Raises:
        ValueError: the frames of these windows cannot be shared.
    """

    def __init__(self, frontend: mast.LogMel, hop: float) -> None:
        if not self.applies(frontend, hop):
            raise ValueError(
                f"windows every {hop:g} s do not begin at frames of this frontend, or it centres or fills clips"
            )
        self.frontend = frontend
        self._stream = mast.StreamingLogMel(frontend)
        self._frames: Tensor | None = None  # (1, 1, F, T), of which the first is number `_first` of the recording
        self._first = 0
        self._reached = 0  # samples of the recording that were pushed

    @staticmethod
    def applies(frontend: mast.LogMel, hop: float) -> bool:
        """Whether windows every ``hop`` seconds begin at frames, and frames do not depend on the rest of the clip."""
        step = hop * frontend.sample_rate / frontend.shift
        whole = frontend.center_clips or frontend.fixed_frames is not None
        return not whole and round(step) >= 1 and abs(step - round(step)) < 1e-9 * step

    @torch.inference_mode()
    def __call__(self, windows: Sequence[Window], device: torch.device) -> Tensor:
        """Spectrograms (N, 1, F, T) of the next N windows, on ``device``."""
        begins = [round(window.start * self.frontend.sample_rate) for window in windows]
        pieces = []
        for begin, window in zip(begins, windows, strict=True):
            if begin > self._reached:
                raise ValueError(f"the window at {window.start:g} s leaves a gap after the one before")
            pieces.append(window.waveform[self._reached - begin :])
            self._reached = begin + len(window.waveform)
        fresh = self._stream.push(torch.from_numpy(np.concatenate(pieces))[None].to(device))
        frames = fresh if self._frames is None else torch.cat((self._frames, fresh), dim=-1)
        shift, length = self.frontend.shift, self.frontend.num_frames(len(windows[0].waveform))
        starts = [begin // shift - self._first for begin in begins]
        cut = torch.cat([frames[..., start : start + length] for start in starts])
        self._frames, self._first = frames[..., starts[-1] :].clone(), begins[-1] // shift
        return cut


class Predictor:
    """A fine-tuned classifier that judges windows of sound.

    Args:
        loaded: A classifier of audio, which is moved to ``device``.
        window: Seconds of a window; default: the clip length that the model was trained with.
        hop: Seconds from window to window; default: one after the other.
        device: "auto" takes a GPU where there is one.
        channel: What is heard of several channels: "mean", or the number of one; default: as in training.

    Raises:
        ValueError: it has no classes, or sees; no window is known, or one too short for a spectrogram; no such device.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        window: float | None = None,
        hop: float | None = None,
        device: str = "auto",
        channel: Channel | None = None,
    ) -> None:
        model = loaded.classifier
        if not isinstance(model, AudioClassifier):
            takes = " and ".join(loaded.modalities)
            raise ValueError(
                f"checkpoint: {loaded.path} classifies {takes}; predictions over time are of sound alone: fine-tune "
                "with --modality audio, or judge this one with avssl evaluate"
                if model is not None
                else f"checkpoint: {loaded.path} has no classes; fine-tune it first (avssl finetune)"
            )
        self.labels, self.sample_rate = loaded.labels, loaded.sample_rate
        self.channel = loaded.settings.channel if channel is None else channel
        check_channel(self.channel)
        seconds = loaded.settings.clip_seconds if window is None else window
        if seconds is None:
            raise ValueError(f"window: {loaded.path} does not say how long its clips were; give --window SECONDS")
        self.seconds, self.hop = seconds, seconds if hop is None else hop
        if not 0 < self.seconds < math.inf or not 0 < self.hop < math.inf:
            raise ValueError(f"window and hop must be positive and finite, got {self.seconds:g} s and {self.hop:g} s")
        if not model.frontend.num_frames(round(self.seconds * self.sample_rate)):
            raise ValueError(f"window: {self.seconds:g} s are shorter than one frame of the spectrogram")
        try:
            self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
            self.loaded, self.classifier = loaded.to(self.device), model
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: cannot use {device!r}: {str(error).splitlines()[0]}") from error

    def windows(self, blocks: Iterable[np.ndarray]) -> Iterator[Window]:
        """The windows of sound that comes in blocks (S,) at ``sample_rate``."""
        return sliding_windows(blocks, self.sample_rate, self.seconds, self.hop)

    def sliding(self) -> SlidingLogMel | None:
        """What computes each frame of a recording's overlapping windows once; None where they share none."""
        frontend = self.classifier.frontend
        overlap = self.hop < self.seconds
        return SlidingLogMel(frontend, self.hop) if overlap and SlidingLogMel.applies(frontend, self.hop) else None

    @torch.inference_mode()
    def classify(self, windows: Sequence[Window], sliding: SlidingLogMel | None = None) -> list[Prediction]:
        """Scores of every class of every head: softmax, or, of a head with several labels at once, sigmoid.

        Args:
            windows: Of one recording.
            sliding: Made for this recording, and given all of its windows in turn; None computes all frames anew.
        """
        frontend, size = self.classifier.frontend, len(windows[0].waveform)
        samples = [min(size, round((window.end - window.start) * self.sample_rate)) for window in windows]
        sound = torch.tensor(samples, device=self.device)
        if sliding is None or (frontend.pad != "wave" and samples[-1] < size):  # only the last one is ever short
            waveform = torch.from_numpy(np.stack([window.waveform for window in windows])).to(self.device)
            spectrogram = frontend(waveform, sound)
        else:
            spectrogram = sliding(windows, self.device)
        logits = self.classifier(spectrogram, frontend.valid_frames(sound, size))
        scores = {head: values.cpu().numpy() for head, values in self.loaded.probabilities(logits).items()}
        return [
            Prediction(window.start, window.end, {head: values[i] for head, values in scores.items()})
            for i, window in enumerate(windows)
        ]

    def predict(
        self,
        blocks: Iterable[np.ndarray],
        batch_size: int = 1,
        covered: Sequence[tuple[float, float]] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions of all windows of some sound, in order; one is given as soon as its batch is complete.

        Args:
            blocks: (S,) at ``sample_rate``, from second 0 on.
            batch_size: Windows judged together.
            covered: The seconds that have sound, which grows as blocks are taken: windows begin with the first of
                them, and of those that lie in a gap the scores mean nothing. None: all have.

        Raises:
            MediaError: that of the blocks, after the predictions of all windows that were complete before it.
        """
        batch: list[Window] = []
        sliding = self.sliding()
        failure: MediaError | None = None
        try:
            for window in self.windows(
                blocks if covered is None else from_first_sound(blocks, self.sample_rate, covered)
            ):
                batch.append(window)
                if len(batch) == batch_size:
                    yield from _moved(self.classify(batch, sliding), covered)
                    batch = []
        except MediaError as error:  # what came before the damage is still worth its predictions
            failure = error
        if batch:
            yield from _moved(self.classify(batch, sliding), covered)
        if failure is not None:
            raise failure


def _moved(predictions: list[Prediction], covered: Sequence[tuple[float, float]] | None) -> list[Prediction]:
    """On the clock of the recording, whose first window begins with its first sound."""
    offset = covered[0][0] if covered else 0.0
    return [replace(found, start=found.start + offset, end=found.end + offset) for found in predictions]
