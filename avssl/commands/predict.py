"""Says which classes are heard when, in files, in a file on standard input (-), or in raw samples (--stream -).

avssl predict --checkpoint runs/finetune-esc50-full-pretrained recording.wav video.mp4
arecord -f S16_LE -r 16000 | avssl predict --checkpoint RUN --stream --rate 16000 --sample-format s16le -
"""

import csv
import json
import logging
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from avssl.data.media import Channel, MediaError
from avssl.data.media.audio import MISSING_SECONDS
from avssl.data.media.stream import stream_audio, stream_raw
from avssl.data.scan import warning_words
from avssl.data.windows import has_sound
from avssl.errors import printable
from avssl.evaluation.classification import ranking
from avssl.loading import load
from avssl.prediction import Prediction, Predictor
from avssl.progress import Meter

logger = logging.getLogger(__name__)

# The name by which standard input is given, and the one by which it is told of.
STDIN, STDIN_NAME = "-", "stdin"
FORMATS = ("text", "json", "csv")
CSV_COLUMNS = ("file", "start", "end", "head", "rank", "class", "score")


class PredictionWriter(Protocol):
    """Where predictions go: ``with writer.file(name): writer.write(prediction) ...``.

    ``skip`` stands for a window that is left out: what comes next is no neighbour of what came before.
    """

    def file(self, name: str) -> Any: ...
    def write(self, prediction: Prediction) -> None: ...
    def skip(self) -> None: ...


def run(arguments: Namespace) -> int:
    """The command; returns the exit status: 1 where a file failed."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        return 1 if run_predict(**vars(arguments)) else 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:  # the way to end a stream
        return 130


def run_predict(
    files: Sequence[str],
    checkpoint: Path,
    *,
    window: float | None,
    hop: float | None,
    top: int,
    format: str,
    batch_size: int,
    device: str,
    merge: bool,
    stream: bool,
    rate: int,
    sample_format: str,
    channels: int,
    channel: Channel | None = None,
    output: TextIO | None = None,
) -> int:
    """What ``avssl predict`` does; returns the number of files that failed.

    Raises:
        ValueError: options that make no sense.
        FileNotFoundError: no checkpoint.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"top and batch-size must be at least 1, got {top} and {batch_size}")
    if stream and list(files) != [STDIN]:
        raise ValueError("stream: raw samples come from standard input: give - as the only file")
    if files.count(STDIN) > 1:
        raise ValueError("files: standard input can be read only once")
    loaded = load(checkpoint, kind="classifier")
    predictor = Predictor(loaded, window=window, hop=hop, device=device, channel=channel)
    target = output or sys.stdout
    writer = create_writer(format, target, predictor.labels, top, merge=merge and not stream)
    if stream:
        failures = predict_stream(
            sys.stdin.buffer, predictor, writer, rate=rate, sample_format=sample_format, channels=channels
        )
    else:
        show = not target.isatty()  # on a terminal the predictions themselves are the progress
        failures = predict_files(files, predictor, writer, batch_size=batch_size, progress=show)
    failed = sum(failures.values())
    if failed:
        reasons = ", ".join(f"{reason} x{count}" for reason, count in failures.most_common())
        logger.error("%d of %d files failed: %s", failed, len(files), reasons)
    return failed


def predict_files(
    files: Sequence[str],
    predictor: Predictor,
    writer: PredictionWriter,
    *,
    batch_size: int = 16,
    stdin: BinaryIO | None = None,
    progress: bool = False,
    warnings: dict[str, str] | None = None,
) -> Counter[str]:
    """Writes the predictions of every file; one that fails is told, counted and left.

    A file that breaks off in its middle keeps the predictions until there, and counts as failed. Windows in which the
    file has no sound are left out and told, and so is the rest of a file of which only a part can be used.

    Args:
        files: Paths; "-" is a media file on ``stdin``.
        progress: Show files and the time reached in the one at hand.
        warnings: Is filled with why only a part of a file was judged, by its name.

    Returns:
        Reasons of failure and how many files have each.
    """
    failures: Counter[str] = Counter()
    with Meter("predict", total=len(files), unit="file", shown=progress) as meter:
        for file in files:
            name = STDIN_NAME if file == STDIN else printable(file)
            source: str | BinaryIO = (stdin or sys.stdin.buffer) if file == STDIN else file
            covered: list[tuple[float, float]] = []
            partly: list[str] = []
            gaps = 0
            try:
                with writer.file(name):
                    blocks = stream_audio(source, predictor.sample_rate, name, predictor.channel, covered, partly)
                    for prediction in predictor.predict(blocks, 1 if file == STDIN else batch_size, covered):
                        if has_sound(prediction.start, prediction.end, covered):
                            writer.write(prediction)
                        else:
                            writer.skip()
                            gaps += 1
                        meter.note(f"{prediction.end:.0f} s of {Path(name).name}")
            except MediaError as error:
                logger.error("%s", error)
                failures[error.reason] += 1
            if covered and covered[0][0] > MISSING_SECONDS:
                logger.info("%s: sound begins at %.2f s", name, covered[0][0])
            if gaps:
                logger.warning("%s: %d windows left out, in which the file has no sound", name, gaps)
            for reason in partly:
                logger.warning("%s: %s (%.2f s)", name, warning_words(reason), covered[-1][1] if covered else 0.0)
            if partly and warnings is not None:
                warnings[name] = "; ".join(partly)
            meter.update()
    return failures


def predict_stream(
    stdin: BinaryIO,
    predictor: Predictor,
    writer: PredictionWriter,
    *,
    rate: int,
    sample_format: str = "s16le",
    channels: int = 1,
) -> Counter[str]:
    """Writes the predictions of raw samples as each window completes, until the stream ends; returns as above."""
    blocks = stream_raw(
        stdin,
        rate,
        predictor.sample_rate,
        sample_format=sample_format,
        channels=channels,
        channel=predictor.channel,
        name=STDIN_NAME,
    )
    try:
        with writer.file(STDIN_NAME):
            for prediction in predictor.predict(blocks):
                writer.write(prediction)
    except MediaError as error:
        logger.error("%s", error)
        return Counter([error.reason])
    return Counter()


def create_writer(
    format: str, target: TextIO, labels: Mapping[str, Sequence[str]], top: int, *, merge: bool = True
) -> PredictionWriter:
    """The writer of a format.

    Args:
        format: One of `FORMATS`.
        target: Where to; every line is flushed.
        labels: Class names of each head.
        top: Classes of each head that are named, best first.
        merge: Whether text joins neighbouring windows with the same best classes to one line, with their mean scores.

    Raises:
        ValueError: another format.
    """
    if format == "text":
        return _TextWriter(target, labels, top, merge)
    if format == "json":
        return _JsonWriter(target, labels, top)
    if format == "csv":
        return _CsvWriter(target, labels, top)
    raise ValueError(f"format: must be one of {', '.join(FORMATS)}, got {format!r}")


class _Writer:
    def __init__(self, target: TextIO, labels: Mapping[str, Sequence[str]], top: int) -> None:
        self.target, self.labels, self.top = target, labels, top
        self.name = ""

    @contextmanager
    def file(self, name: str) -> Iterator[None]:
        self.name = name
        try:
            yield
        finally:
            self.finish()

    def finish(self) -> None:
        """Called at the end of a file, also of one that broke off."""

    def skip(self) -> None:
        self.finish()

    def best(self, prediction: Prediction) -> dict[str, list[tuple[str, float]]]:
        """(class, score) by head, best first."""
        return {
            head: [(self.labels[head][k], float(scores[k])) for k in ranking(scores[None], self.top)[0]]
            for head, scores in prediction.scores.items()
        }


class _JsonWriter(_Writer):
    """JSON Lines: one object a window, so that a reader need not wait for the end of a stream."""

    def write(self, prediction: Prediction) -> None:
        heads = {
            head: [{"class": name, "score": round(score, 6)} for name, score in best]
            for head, best in self.best(prediction).items()
        }
        times = {"start": round(prediction.start, 6), "end": round(prediction.end, 6)}
        self.target.write(json.dumps({"file": self.name, **times, "heads": heads}, ensure_ascii=False) + "\n")
        self.target.flush()


class _CsvWriter(_Writer):
    """One line for each window, head and rank, under a header."""

    def __init__(self, target: TextIO, labels: Mapping[str, Sequence[str]], top: int) -> None:
        super().__init__(target, labels, top)
        self.csv = csv.writer(target, lineterminator="\n")
        self.csv.writerow(CSV_COLUMNS)

    def write(self, prediction: Prediction) -> None:
        times = (f"{prediction.start:.6f}", f"{prediction.end:.6f}")
        for head, best in self.best(prediction).items():
            for rank, (name, score) in enumerate(best, start=1):
                self.csv.writerow((self.name, *times, head, rank, name, f"{score:.6f}"))
        self.target.flush()


class _TextWriter(_Writer):
    """For the eye: a line a window, or one for neighbours that agree."""

    def __init__(self, target: TextIO, labels: Mapping[str, Sequence[str]], top: int, merge: bool) -> None:
        super().__init__(target, labels, top)
        self.merge = merge
        self.pending: Prediction | None = None
        self.count = 0
        self.title = ""

    def write(self, prediction: Prediction) -> None:
        if self.pending is not None and self.merge and self._agree(self.pending, prediction):
            scores = {head: self.pending.scores[head] + values for head, values in prediction.scores.items()}
            self.pending = Prediction(self.pending.start, prediction.end, scores)
            self.count += 1
            return
        self.finish()
        self.pending, self.count = prediction, 1
        if not self.merge:
            self.finish()

    def finish(self) -> None:
        if self.pending is None:
            return
        if self.title != self.name:
            self.title = self.name
            self.target.write(f"{self.name}:\n")
        mean = {head: values / self.count for head, values in self.pending.scores.items()}
        several = len(mean) > 1
        parts = []
        for head, best in self.best(Prediction(self.pending.start, self.pending.end, mean)).items():
            named = ", ".join(f"{name} {score:.2f}" for name, score in best)
            parts.append(f"{head}: {named}" if several else named)
        self.target.write(f"  {self.pending.start:8.2f} to {self.pending.end:8.2f} s  {'; '.join(parts)}\n")
        self.target.flush()
        self.pending = None

    @staticmethod
    def _agree(one: Prediction, other: Prediction) -> bool:
        """Whether the best class of every head is the same."""
        return all(values.argmax() == one.scores[head].argmax() for head, values in other.scores.items())
