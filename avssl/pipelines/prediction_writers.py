"""Predictions as text, JSON or CSV, written window by window."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.classification import ranking

FORMATS = ("text", "json", "csv")
CSV_COLUMNS = ("file", "start", "end", "head", "rank", "class", "score")


@dataclass(frozen=True)
class Prediction:
    """``scores``: (classes,) by head, 0 to 1, of the seconds ``start`` to ``end``."""

    start: float
    end: float
    scores: Mapping[str, FloatArray]


class PredictionWriter(Protocol):
    """Where predictions go: ``with writer.file(name): writer.write(prediction) ...``.

    ``skip`` stands for a window that is left out: what comes next is no neighbour of what came before.
    """

    def file(self, name: str) -> Any: ...
    def write(self, prediction: Prediction) -> None: ...
    def skip(self) -> None: ...


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
