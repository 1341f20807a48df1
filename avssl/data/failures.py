"""What could not be read: counted, told once a reason, and the end of a run when there is too much of it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class DataError(RuntimeError):
    """The data cannot be used as asked; the message says which file and how to mend it."""


@dataclass(frozen=True)
class Failure:
    """A manifest row that could not be decoded.

    Args:
        path: The file.
        reason: Short and countable, for example "no audio stream".
        index: The row in the manifest; -1 when unknown.
        message: The whole error, one line; default: reason and path.
    """

    path: str
    reason: str
    index: int = -1
    message: str = ""

    def __str__(self) -> str:
        return self.message or f"{self.path}: {self.reason}"


class Attempted(Protocol):
    """What :meth:`FailureMonitor.update` needs of a batch."""

    @property
    def rows_read(self) -> int: ...
    @property
    def failures(self) -> list[Failure]: ...
    @property
    def missing(self) -> int: ...


class FailureMonitor:
    """Counts failures by reason over the batches of a run and aborts it when they are too many.

    Rows of the manifest are counted, both read and failed ones: a row that gives several clips is one, and the partner
    of a blend is one more.

    A run aborts at once when each of the first ``abort_first`` clips failed (a wrong folder, a missing codec), and,
    from ``min_seen`` clips on, when more than ``max_share`` of all failed. The error carries the *first* cause: later
    ones are often its consequences.

    Args:
        max_share: Largest share of failed clips that a run tolerates, 0 to 1; 1 never aborts (evaluation, which
            reports its coverage instead).
        abort_first: Number of leading clips of which at least one must succeed.
        min_seen: Number of clips before the share counts, so that one early failure ends no run.

    >>> monitor = FailureMonitor()
    >>> # for batch in loader: monitor.update(batch)
    >>> monitor.summary()["failed"]
    0
    """

    def __init__(self, max_share: float = 0.2, abort_first: int = 20, min_seen: int = 100) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share must lie in 0..1, got {max_share}")
        self.max_share = max_share
        self.abort_first = abort_first
        self.min_seen = min_seen
        self.seen = 0
        self.failed = 0
        self.reasons: Counter[str] = Counter()
        self.first: Failure | None = None

    def update(self, batch: Attempted) -> None:
        """Counts the batch's clips and failures.

        Raises:
            DataError: too much failed, or a training batch could not be filled; it names the first cause.
        """
        for failure in batch.failures:
            self.first = self.first or failure
            if failure.reason not in self.reasons:
                logger.warning("unreadable: %s (further ones with this reason are counted only)", failure)
            self.reasons[failure.reason] += 1
        self.failed += len(batch.failures)
        self.seen += batch.rows_read + len(batch.failures)
        if self.max_share >= 1 or not self.failed:
            return
        if self.failed == self.seen and self.seen >= self.abort_first:
            raise DataError(f"all of the first {self.seen} clips failed; {self._causes()}")
        if batch.missing:
            raise DataError(f"{batch.missing} clip(s) of a batch failed with all their replacements; {self._causes()}")
        if self.seen >= self.min_seen and self.failed > self.max_share * self.seen:
            share = f"{self.failed} of {self.seen} clips failed, more than the {self.max_share:.0%} allowed"
            raise DataError(f"{share}; {self._causes()}")

    def summary(self) -> dict[str, object]:
        """``{"seen", "failed", "share", "reasons": {reason: count}, "first": str | None}``, JSON-able."""
        return {
            "seen": self.seen,
            "failed": self.failed,
            "share": self.failed / self.seen if self.seen else 0.0,
            "reasons": dict(self.reasons.most_common()),
            "first": str(self.first) if self.first else None,
        }

    def state_dict(self) -> dict[str, object]:
        """Counts so far, as plain values, for a checkpoint."""
        first = asdict(self.first) if self.first else None
        return {"seen": self.seen, "failed": self.failed, "reasons": dict(self.reasons), "first": first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.seen, self.failed, self.reasons = state["seen"], state["failed"], Counter(state["reasons"])
        self.first = Failure(**state["first"]) if state["first"] else None

    @classmethod
    def of_all(cls, states: Sequence[dict[str, Any]]) -> "FailureMonitor":
        """The sum of what several processes' :meth:`state_dict` gave; its first failure is that of the first one."""
        whole = cls()
        for state in states:
            whole.seen, whole.failed = whole.seen + state["seen"], whole.failed + state["failed"]
            whole.reasons.update(state["reasons"])
            if whole.first is None and state["first"]:
                whole.first = Failure(**state["first"])
        return whole

    def _causes(self) -> str:
        counts = ", ".join(f"{reason} x{count}" for reason, count in self.reasons.most_common(3))
        return f"first cause: {self.first}; reasons: {counts}"
