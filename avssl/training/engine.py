"""The training loop: one for every task, on Lightning Fabric.

What a step computes depends on its number alone: the sampler can start anywhere, and all random numbers of a step come
from a seed made of the run's seed, the step and the process. A run that was killed and resumed therefore writes the
same metrics, value for value, as one that was not.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from avssl.checkpoint import BEST, LAST, CheckpointStore, is_sharded, read_head
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.data.loader import prefetched
from avssl.errors import LostProcessError, NonFiniteError
from avssl.progress import Meter
from avssl.tracking import Tracker
from avssl.training.finite import FiniteCheck
from avssl.training.graphed import GraphedStep
from avssl.training.launch import is_lost_process, stop_signals
from avssl.training.optimizer import ExponentialAverage, make_optimizer, make_scheduler, scaled_lr
from avssl.training.settings import LogConfig, OptimConfig
from avssl.training.task import Task
from avssl.training.utilization import UtilizationMeter, Window

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    best: float = -math.inf
    best_step: int = -1
    worse: int = 0  # validations since the best
    skipped: int = 0  # steps that the fp16 scaler skipped
    validation_due: bool = False  # a signal came first: it is made up for when the run goes on
    failures: dict[str, Any] = field(default_factory=dict)


Validation = Callable[[Any], dict[str, float]]
"""A model -> its metrics by name. It is a plain function: what it needs beside the model is bound before."""


class Engine:
    """Trains a task by AdamW with a warm-up and a cosine.

    Args:
        fabric: Launched Fabric.
        task: What is trained.
        optim: Optimizer and schedule; of its steps' number, ``steps`` counts.
        log: What is logged and saved, and how often.
        steps: Optimizer steps of the whole run.
        tracker: Where metrics go.
        store: Where checkpoints go.
        failures: Counts unreadable clips and aborts when there are too many.
        settings: Plain values saved beside the weights, which rebuild the model.
        monitor: Validation metric, higher is better, that chooses the best checkpoint; of equal ones the latest.
        seed: Seed of the run.
        graphs: On a GPU, in one process, steps by CUDA graphs; see :class:`GraphedStep`.
        compile_frontend: In these graphs the log-mel is compiled.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Task,
        *,
        optim: OptimConfig,
        log: LogConfig,
        steps: int,
        tracker: Tracker,
        store: CheckpointStore,
        failures: FailureMonitor,
        settings: dict[str, Any],
        monitor: str | None = None,
        seed: int = 0,
        graphs: bool = False,
        compile_frontend: bool = False,
    ) -> None:
        self.fabric, self.optim, self.log, self.max_steps, self.monitor = fabric, optim, log, steps, monitor
        self.tracker, self.store, self.failures, self.settings, self.seed = tracker, store, failures, settings, seed
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # batch statistics of the global batch
            task = cast(Task, nn.SyncBatchNorm.convert_sync_batchnorm(task))
        self.raw_task = task
        self.sharded = is_sharded(fabric)
        if self.sharded and optim.ema is not None:
            raise ValueError("optim.ema: is not available with runtime.strategy fsdp; use ddp")
        self._whole = copy.deepcopy(task.model) if self.sharded else None
        self.average = None if optim.ema is None else ExponentialAverage(task.model, optim.ema).to(fabric.device)
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        # Sharding replaces the parameters: the optimizer comes after.
        self.task = fabric.setup_module(task)
        clips = optim.batch_size * optim.accumulate * fabric.world_size
        lr = scaled_lr(optim.lr, optim.lr_scaling, clips, optim.base_batch)
        if lr != optim.lr:
            logger.info("learning rate %g for %d clips a step (%g for %d)", lr, clips, optim.lr, optim.base_batch)
        optimizer = make_optimizer(
            task,
            lr=lr,
            weight_decay=optim.weight_decay,
            betas=optim.betas,
            layer_decay=optim.layer_decay,
            fused=self.scaler is None,
        )
        self.scheduler = make_scheduler(optimizer, max_steps=steps, warmup=optim.warmup, lr=lr, min_lr=optim.min_lr)
        self.optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))
        # Under mixed precision Fabric rebuilds every batch to cast float tensors, and refuses frozen dataclasses. Ours
        # are float32 as they should be; autocast does the rest.
        fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]
        self.finite = FiniteCheck(fabric, optimizer, self.scaler, self._count_skipped)
        self.graphs: GraphedStep | None = None
        if graphs and self.finite.later and fabric.world_size == 1:
            frontend = task.frontend if compile_frontend else None
            self.graphs = GraphedStep(fabric, task, optimizer, self.finite, self.gradient_norm, frontend)
        self.progress = Progress()
        self.clips_per_second = 0.0
        self.utilization = UtilizationMeter(fabric)

    def model(self) -> nn.Module:
        """What is to be evaluated: the averaged weights where there is an average, whole ones where they are sharded.

        Every process has to call it.
        """
        if self.average is not None:
            return cast(nn.Module, self.average.module)
        if self._whole is None:
            return self.raw_task.model
        weights = get_model_state_dict(
            self.raw_task.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if self.fabric.is_global_zero:
            self._whole.load_state_dict(weights)
        return self._whole.to(self.fabric.device)

    def resume(self, path: Path) -> None:
        """Continues from the checkpoint at ``path``; the metrics file is cut back to its step."""
        state = self.store.load(path, {"task": self.task, "optimizer": self.optimizer})
        self.scheduler.load_state_dict(state["scheduler"])
        if (state["average"] is None) != (self.average is None):
            raise ValueError(f"{path} was written {'with' if state['average'] else 'without'} optim.ema")
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self._take_failures()
        self.tracker.rewind(self.progress.step, without="val/" if self.progress.validation_due else None)
        if path.parent.resolve() != self.store.folder.resolve():  # the best of that run is not in this one's folder
            self.progress.best, self.progress.best_step = -math.inf, -1
        logger.info("resumed at step %d from %s", self.progress.step, path)

    def _take_failures(self) -> None:
        """Counts on from where this process was; where there were others than now, the first takes all that failed."""
        kept = self._failures_by_process()
        if len(kept) == self.fabric.world_size:
            self.failures.load_state_dict(kept[self.fabric.global_rank])
        elif self.fabric.is_global_zero:
            self.failures.load_state_dict(FailureMonitor.of_all(kept).state_dict())

    def _failures_by_process(self) -> list[dict[str, Any]]:
        return self.progress.failures.get("processes", [self.progress.failures])  # of earlier versions one

    def all_failures(self) -> dict[str, object]:
        """`FailureMonitor.summary` of all processes, as of the last checkpoint."""
        return FailureMonitor.of_all(self._failures_by_process()).summary()

    def choose_weights(self) -> dict[str, Any]:
        """Puts the weights that ``log.use`` asks for into the model, once training is over; every process calls it.

        Returns:
            For result.json: ``use`` (best or last), their ``step``, and of the best the ``metric`` that chose them with
            its ``value``. The last stay where no validation has chosen any.
        """
        progress = self.progress
        if self.log.use == "best" and self.use_best():
            metric = f"val/{self.monitor}"
            logger.info("using the weights of step %d of %d, the best by %s", progress.best_step, progress.step, metric)
            return {"use": "best", "step": progress.best_step, "metric": metric, "value": progress.best}
        return {"use": "last", "step": progress.step}

    def use_best(self) -> bool:
        """Puts the weights of ``best.ckpt`` into the model; call it when training is over, on every process.

        Returns:
            False where no validation has chosen one; the last weights then stay.
        """
        path, progress = self.store.folder / BEST, self.progress
        if progress.best_step < 0:
            return False
        if progress.best_step == progress.step:
            return True
        try:
            found = read_head(path)["progress"]["step"] if path.is_file() else None
            if found == progress.best_step:
                self.store.check(path)
        except ValueError as error:
            logger.warning("using the last weights instead of the best, of step %d: %s", progress.best_step, error)
            return False
        if found != progress.best_step:
            logger.warning("%s is not of step %d, which was best: using the last weights", path, progress.best_step)
            return False
        average = self.store.load(path, {"task": self.task})["average"]
        if self.average is not None:
            self.average.load_state_dict(average)
        return True

    def fit(self, loader: Iterable[Batch], validate: Validation | None = None) -> bool:
        """Trains to ``max_steps``.

        Args:
            loader: Yields ``optim.accumulate`` batches for every step from ``progress.step`` on.
            validate: Model -> metrics; the first process calls it with what :meth:`model` gives.

        Returns:
            False when SIGTERM or SIGINT ended the run early; it was saved, and resumes. True at the last step, or where
            ``patience`` ran out.

        Raises:
            NonFiniteError: a step would have spoilt the weights, and was not taken; see :class:`FiniteCheck`.
            DataError: when too many clips are unreadable.
            LostProcessError: when another process of the run has died.
        """
        try:
            return self._fit(loader, validate)
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            saved = self.store.folder / LAST
            raise LostProcessError(
                f"process {self.fabric.global_rank} of {self.fabric.world_size} lost another one at step "
                f"{self.progress.step}: it was killed, ran out of memory or failed (see its own last lines). "
                + (f"The same command continues from {saved}" if saved.is_file() else "No checkpoint was written yet")
            ) from error

    def _fit(self, loader: Iterable[Batch], validate: Validation | None) -> bool:
        log, progress, max_steps = self.log, self.progress, self.max_steps
        if validate and progress.validation_due:
            self._validate(validate)
            self.save(LAST)
        if progress.step >= max_steps or self._out_of_patience():
            return True
        shown = self.fabric.is_global_zero
        meter = Meter("training", total=max_steps, initial=progress.step, unit="step", shown=shown)
        batches = prefetched(loader, self.fabric.device)
        self.task.train()
        window = Window()
        with stop_signals() as stop, meter, closing(batches):
            last = False
            while not last:
                with window.waiting():
                    step_batches = list(islice(batches, self.optim.accumulate))
                with self.utilization.counting():
                    losses, report, norm, stopped = self.step(step_batches, stop)
                progress.step += 1
                window.steps += 1
                meter.update()
                window.clips += sum(batch.size for batch in step_batches) * self.fabric.world_size
                last = progress.step == max_steps
                logging_due = last or progress.step % log.every == 0
                if logging_due:
                    row = self._log_step(losses, report, norm, window)
                    meter.note(f"loss {row['loss']:.3f}, {self.clips_per_second:.1f} clips/s")
                progress.validation_due = bool(validate) and (last or _due(progress.step, log.validate_every))
                if validate and progress.validation_due and not stopped:
                    self._validate(validate)
                    if not last and self._out_of_patience():
                        logger.info("no better %s in %d validations", self.monitor, log.patience)
                        last = True
                if last or stopped or _due(progress.step, log.checkpoint_every):
                    self.save(LAST)
                if _due(progress.step, log.keep_every):
                    self.save(f"step-{progress.step}.ckpt")
                if logging_due:
                    window = Window()
                if stopped:
                    logger.warning("stopped by a signal at step %d; continue with --resume auto", progress.step)
                    return False
        return True

    def save(self, name: str) -> None:
        """Writes the whole state of the run, atomically."""
        self.finite.settle()
        states: list[Any] = [self.failures.state_dict()]
        if self.fabric.world_size > 1:  # each process has clips of its own, and so failures
            states = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(states, self.failures.state_dict())
        self.progress.failures = {"processes": states}
        self.tracker.sync()
        self.store.save(
            name,
            {
                "task": self.task,
                "optimizer": self.optimizer,
                "scheduler": self.scheduler.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "progress": vars(self.progress).copy(),
                "settings": self.settings,
                "wandb_id": self.tracker.run_id,
                "sharded": self.sharded,
            },
        )

    def step(
        self, batches: list[Batch], stop: Sequence[int] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, bool]:
        """One optimizer step: its losses, reports and gradient norm, and whether any process was told to stop.

        ``stop`` holds the signals that this one has received.
        """
        rank, step = self.fabric.global_rank, self.progress.step
        seed_everything((self.seed * 1_000_003 + step * 1009 + rank) % 2**32, verbose=False)
        self.raw_task.before_step(step, self.max_steps)
        for batch in batches:
            self.failures.update(batch)
            if batch.size == 0:
                raise NonFiniteError(f"step {step}: no clip of the batch could be read: {batch.failures[0]}")
        batches = [batch.to(self.fabric.device) for batch in batches]
        found = None if self.graphs is None or len(batches) > 1 else self.graphs.whole(step, batches[0])
        if found is not None:
            losses, report, norm = found
            stopped = bool(stop)
        else:
            losses, report = self._gradients(batches)
            norm, stopped = self._optimize(step, losses, stop)
            self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.raw_task.after_step(step + 1, self.max_steps)
        if self.average is not None:
            self.average.update_parameters(self.raw_task.model)
        return losses, report, norm, stopped

    def _gradients(self, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the sum over ``batches``; the mean losses and reports."""
        losses: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with self.fabric.no_backward_sync(self.task, enabled=index + 1 < len(batches)):
                terms, details = self.task(batch)
                total = torch.stack(list(terms.values())).sum() / len(batches)
                self.fabric.backward(total)
            for into, values in ((losses, terms), (report, details)):
                for name, value in values.items():
                    into[name] = into.get(name, 0) + value.detach().float() / len(batches)
        return losses, report

    def _optimize(self, step: int, losses: dict[str, Tensor], stop: Sequence[int]) -> tuple[Tensor, bool]:
        """Takes the step; the norm of its gradients, and whether any process was told to stop."""
        norm = None if self.graphs is None else self.graphs.optimize(step, losses)
        if norm is not None:
            return norm, bool(stop)
        norm = self.gradient_norm()
        stopped = self.finite.ask(step, losses, norm, stop)
        self.optimizer.step()
        return norm, stopped

    def gradient_norm(self) -> Tensor:
        """Clips the gradients to ``optim.clip_grad``; their norm (), before that, without gradient."""
        limit = self.optim.clip_grad or math.inf
        norm = self.fabric.clip_gradients(self.task, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        norm = norm.detach()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _count_skipped(self) -> None:
        self.progress.skipped += 1

    def _log_step(
        self, losses: dict[str, Tensor], report: dict[str, Tensor], norm: Tensor, window: Window
    ) -> dict[str, float]:
        self.finite.settle()
        row = {"loss": sum(value.item() for value in losses.values())}
        if len(losses) > 1:
            row |= {f"loss/{name}": value.item() for name, value in losses.items()}
        row |= {name: value.item() for name, value in report.items()}
        row |= {"gradient_norm": norm.item(), "lr": self.scheduler.get_last_lr()[0], "failures": self.failures.failed}
        if self.scaler is not None:
            row |= {"scale": self.scaler.get_scale(), "skipped": self.progress.skipped}
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(torch.tensor(list(row.values()), dtype=torch.float64), reduce_op="mean")
            assert isinstance(values, Tensor)
            row = dict(zip(row, values.tolist(), strict=True))
        # Throughput differs from run to run; it stays out of the metrics file, which does not.
        self.tracker.log({f"train/{key}": value for key, value in row.items()}, self.progress.step)
        speed = window.speed()
        share = self.utilization.share(speed.pop("steps_per_second"))
        if share is not None:
            speed["mfu"] = share
        self.clips_per_second = speed["clips_per_second"]
        self.tracker.log_speed(speed, self.progress.step)
        return row

    def _validate(self, validate: Validation) -> None:
        self.finite.settle()
        self.task.eval()
        model = self.model()
        metrics = self.fabric.broadcast(validate(model) if self.fabric.is_global_zero else {})
        self.task.train()
        self.tracker.log({f"val/{key}": value for key, value in metrics.items()}, self.progress.step)
        key, progress = self.monitor, self.progress
        progress.validation_due = False
        value = metrics.get(key, -math.inf) if key else -math.inf
        if key in metrics and self.fabric.is_global_zero:
            best = f"; best before: {progress.best:.4f} at step {progress.best_step}" if progress.best_step >= 0 else ""
            logger.info("step %d: validation %s %.4f%s", progress.step, key, value, best)
        progress.worse = 0 if value > progress.best else progress.worse + 1
        # Of equal ones the latest: with few clips the first perfect one comes long before training is over.
        if value > -math.inf and value >= progress.best:
            progress.best, progress.best_step = value, progress.step
            self.tracker.summary({f"best/val/{key}": value, "best/step": progress.step})
            self.save(BEST)

    def _out_of_patience(self) -> bool:
        return 0 < self.log.patience <= self.progress.worse


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
