"""The training loop: one for every task, on Lightning Fabric.

What a step computes depends on its number alone: the sampler can start anywhere, and all random numbers of a step come
from a seed made of the run's seed, the step and the process. A run that was killed and resumed therefore writes the
same metrics, value for value, as one that was not.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightly.utils.scheduler import CosineWarmupScheduler
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from avssl.checkpoint import CheckpointStore
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.tracking import Tracker

logger = logging.getLogger(__name__)


class NonFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the step was not taken and the last checkpoint is sound."""


@dataclass
class Schedule:
    """How long to train and what to do when, in optimizer steps.

    Attributes:
        max_steps: Steps of the whole run.
        accumulate: Batches whose gradients make a step.
        clip_grad: Largest gradient norm; 0 turns clipping off.
        log_every: Steps between rows of the metrics file.
        validate_every: Steps between validations; 0: at the end only.
        checkpoint_every: Steps between saves; 0: at the end only.
        keep_every: Steps between checkpoints that are kept; 0: none.
        monitor: Validation metric, higher is better, that chooses the best checkpoint.
    """

    max_steps: int
    accumulate: int = 1
    clip_grad: float = 1.0
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 0
    keep_every: int = 0
    monitor: str | None = None


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    best: float = -math.inf
    best_step: int = -1
    failures: dict[str, Any] = field(default_factory=dict)


def make_optimizer(
    module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.98)
) -> Optimizer:
    """AdamW whose weight decay spares biases, norms, and what a module lists in ``no_weight_decay()``."""
    spared = set()
    for prefix, child in module.named_modules():
        names = child.no_weight_decay() if hasattr(child, "no_weight_decay") else ()
        spared |= {f"{prefix}.{name}".lstrip(".") for name in names}
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (no_decay if parameter.ndim <= 1 or name in spared else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def make_scheduler(optimizer: Optimizer, *, max_steps: int, warmup: float, lr: float, min_lr: float) -> Any:
    """Linear warm-up over a ``warmup`` share of ``max_steps``, then a cosine from ``lr`` to ``min_lr``."""
    warmup_steps = min(round(warmup * max_steps), max_steps - 1)
    return CosineWarmupScheduler(optimizer, warmup_steps, max_steps, start_value=1.0, end_value=min_lr / lr)


class Engine:
    """Trains a task.

    Args:
        fabric: Launched Fabric.
        task: Module, batch -> (losses, report).
        optimizer: Over the task's parameters.
        scheduler: Stepped once after every optimizer step.
        schedule: How long, and what when.
        tracker: Where metrics go.
        store: Where checkpoints go.
        monitor: Counts unreadable clips and aborts when there are too many.
        model_settings: Plain values saved beside the weights, which rebuild the model.
        seed: Seed of the run.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        schedule: Schedule,
        tracker: Tracker,
        store: CheckpointStore,
        monitor: FailureMonitor,
        model_settings: dict[str, Any],
        seed: int = 0,
    ) -> None:
        self.fabric, self.schedule, self.tracker, self.store = fabric, schedule, tracker, store
        self.scheduler, self.failures, self.model_settings, self.seed = scheduler, monitor, model_settings, seed
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # batch statistics of the global batch
            task = nn.SyncBatchNorm.convert_sync_batchnorm(task)
        self.raw_task = task
        self.task, self.optimizer = fabric.setup(task, optimizer)
        self.progress = Progress()
        self.clips_per_second = 0.0

    def resume(self, path: Path) -> None:
        """Continues from the checkpoint at ``path``; the metrics file is cut back to its step."""
        state = self.store.load(path, {"task": self.task, "optimizer": self.optimizer})
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = Progress(**state["progress"])
        self.failures.load_state_dict(self.progress.failures)
        self.tracker.rewind(self.progress.step)
        logger.info("resumed at step %d from %s", self.progress.step, path)

    def fit(self, loader: Iterable[Batch], validate: Callable[[], dict[str, float]] | None = None) -> bool:
        """Trains to ``schedule.max_steps``.

        Args:
            loader: Yields ``accumulate`` batches for every step from ``progress.step`` on.
            validate: Computes validation metrics.

        Returns:
            False when SIGTERM or SIGINT ended the run early; it was saved, and resumes.

        Raises:
            NonFiniteError: before a step that would spoil the weights.
            DataError: when too many clips are unreadable.
        """
        schedule, progress = self.schedule, self.progress
        if progress.step >= schedule.max_steps:
            return True
        bar = tqdm(
            total=schedule.max_steps,
            initial=progress.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.fabric.is_global_zero,
        )
        batches = iter(loader)
        self.task.train()
        window_clips, window_start = 0, time.perf_counter()
        with _stop_signals() as stop, bar:
            while progress.step < schedule.max_steps:
                step_batches = list(islice(batches, schedule.accumulate))
                losses, report, norm = self._step(step_batches)
                progress.step += 1
                bar.update()
                window_clips += sum(batch.size for batch in step_batches) * self.fabric.world_size
                last = progress.step == schedule.max_steps
                if last or progress.step % schedule.log_every == 0:
                    elapsed = time.perf_counter() - window_start
                    self.clips_per_second = window_clips / elapsed
                    row = self._log(losses, report, norm)
                    bar.set_postfix_str(f"loss {row['loss']:.3f}, {self.clips_per_second:.1f} clips/s")
                stopped = self._any(bool(stop))
                if validate and not stopped and (last or _due(progress.step, schedule.validate_every)):
                    self._validate(validate)
                if last or stopped or _due(progress.step, schedule.checkpoint_every):
                    self.save("last.ckpt")
                if _due(progress.step, schedule.keep_every):
                    self.save(f"step-{progress.step}.ckpt")
                if last or progress.step % schedule.log_every == 0:
                    window_clips, window_start = 0, time.perf_counter()
                if stopped:
                    logger.warning("stopped by a signal at step %d; continue with --resume auto", progress.step)
                    return False
        return True

    def save(self, name: str) -> None:
        """Writes the whole state of the run, atomically."""
        self.progress.failures = self.failures.state_dict()
        self.store.save(
            name,
            {
                "task": self.task,
                "optimizer": self.optimizer,
                "scheduler": self.scheduler.state_dict(),
                "progress": vars(self.progress).copy(),
                "settings": self.model_settings,
                "wandb_id": self.tracker.run_id,
            },
        )

    def _step(self, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        rank, step = self.fabric.global_rank, self.progress.step
        seed_everything((self.seed * 1_000_003 + step * 1009 + rank) % 2**32, verbose=False)
        losses: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            self.failures.update(batch)
            if batch.size == 0:
                raise NonFiniteError(f"step {step}: no clip of the batch could be read: {batch.failures[0]}")
            batch = batch.to(self.fabric.device)
            with self.fabric.no_backward_sync(self.task, enabled=index + 1 < len(batches)):
                terms, details = self.task(batch)
                total = torch.stack(list(terms.values())).sum() / len(batches)
                self.fabric.backward(total)
            for into, values in ((losses, terms), (report, details)):
                for name, value in values.items():
                    into[name] = into.get(name, 0) + value.detach().float() / len(batches)
        norm = self._gradient_norm()
        finite = torch.isfinite(norm) & torch.isfinite(torch.stack(list(losses.values()))).all()
        if not finite:
            shown = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
            raise NonFiniteError(
                f"step {step}: losses ({shown}) or the gradient norm ({norm.item():g}) are not finite; the step "
                "was not taken. Lower optim.lr or use runtime.precision 32-true, and run with --resume auto"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if callable(after_step := getattr(self.raw_task, "after_step", None)):
            after_step(step + 1, self.schedule.max_steps)
        return losses, report, norm

    def _gradient_norm(self) -> Tensor:
        limit = self.schedule.clip_grad or math.inf
        norm = self.fabric.clip_gradients(self.task, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        return norm.detach()

    def _log(self, losses: dict[str, Tensor], report: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        row = {"loss": sum(value.item() for value in losses.values())}
        if len(losses) > 1:
            row |= {f"loss/{name}": value.item() for name, value in losses.items()}
        row |= {name: value.item() for name, value in report.items()}
        row |= {"gradient_norm": norm.item(), "lr": self.scheduler.get_last_lr()[0], "failures": self.failures.failed}
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(torch.tensor(list(row.values()), dtype=torch.float64), reduce_op="mean")
            assert isinstance(values, Tensor)
            row = dict(zip(row, values.tolist(), strict=True))
        # Throughput differs from run to run; it stays out of the metrics file, which does not.
        self.tracker.log({f"train/{key}": value for key, value in row.items()}, self.progress.step)
        self.tracker.log_speed({"clips_per_second": self.clips_per_second}, self.progress.step)
        return row

    def _validate(self, validate: Callable[[], dict[str, float]]) -> None:
        self.task.eval()
        metrics = validate()
        self.task.train()
        self.tracker.log({f"val/{key}": value for key, value in metrics.items()}, self.progress.step)
        key = self.schedule.monitor
        if key and metrics.get(key, -math.inf) > self.progress.best:
            self.progress.best, self.progress.best_step = metrics[key], self.progress.step
            self.save("best.ckpt")

    def _any(self, flag: bool) -> bool:
        """True on every process when it is true on any: all must stop at the same step."""
        if self.fabric.world_size == 1:
            return flag
        reduced = self.fabric.all_reduce(torch.tensor(float(flag)), reduce_op="max")
        assert isinstance(reduced, Tensor)
        return bool(reduced > 0)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills; a second signal acts as it did before."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
