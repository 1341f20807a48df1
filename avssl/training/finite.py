"""Whether a step is finite, on every process: known at once on a CPU, a step later on a GPU, which nobody waits for."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from avssl.checkpoint import is_sharded
from avssl.errors import NonFiniteError

logger = logging.getLogger(__name__)


@dataclass
class _Step:
    """A step that was asked about."""

    number: int
    losses: dict[str, Tensor]
    norm: Tensor
    flags: Tensor  # in the CPU's memory, once they are copied: not finite, and told to stop
    copied: torch.cuda.Event | None


class FiniteCheck:
    """Lets no optimizer step be taken whose losses or gradients are not finite, and has all processes stop together.

    Where the optimizer's kernel can leave a step out by itself (``found_inf`` of fused AdamW on CUDA), the processor
    does not wait for the answer: it goes on to the next step, and reads it there. The step is not taken all the same;
    the error comes before the next one is. :meth:`settle` waits, for who writes what the step has made.

    Args:
        fabric: Launched Fabric.
        optimizer: The optimizer itself.
        scaler: Of fp16, which skips such steps and lowers its scale; its answer is waited for.
        on_skip: Called when the scaler skips a step.

    Attributes:
        later: Whether answers are read a step later.
    """

    def __init__(
        self,
        fabric: Fabric,
        optimizer: Optimizer,
        scaler: GradScaler | None = None,
        on_skip: Callable[[], None] = lambda: None,
    ) -> None:
        self._fabric, self._optimizer, self._scaler, self._on_skip = fabric, optimizer, scaler, on_skip
        fused = isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults["fused"])
        self.later = fabric.device.type == "cuda" and fused and scaler is None and not is_sharded(fabric)
        self._asked: _Step | None = None
        self._stopped = False

    def ask(self, number: int, losses: dict[str, Tensor], norm: Tensor, stop: Sequence[int]) -> bool:
        """Between a step's gradients and the optimizer.

        Args:
            number: Of the step.
            losses: Of this process, by name.
            norm: Of the gradients.
            stop: Signals that this process has received.

        Returns:
            Whether any process was told to stop; with several processes, where answers are read later, a step later.

        Raises:
            NonFiniteError: of this step or, where answers are read later, of the one before; on every process.
        """
        flags = self.flags(losses, norm)
        if stop:
            flags[1] = 1.0
        if self._fabric.world_size > 1:  # Fabric's own reduction would have all wait for all twice
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if self.later:
            self._optimizer.found_inf = flags[0]  # type: ignore[attr-defined]  # the kernel reads it
            self.settle()
            self._asked = self._copied(_Step(number, losses, norm, flags, None))
        else:
            self._asked = _Step(number, losses, norm, flags, None)
            self.settle()
        stopped, self._stopped = self._stopped, False
        return bool(stop) if self._fabric.world_size == 1 else stopped

    @staticmethod
    def flags(losses: Mapping[str, Tensor], norm: Tensor) -> Tensor:
        """(2,) float32: whether a step is not finite, and whether it was told to stop, which it was not so far."""
        broken = ~(torch.isfinite(norm) & torch.isfinite(torch.stack(list(losses.values()))).all())
        return F.pad(broken.float()[None], (0, 1))

    def watch(self, number: int, losses: dict[str, Tensor], norm: Tensor, flags: Tensor) -> None:
        """After a step whose optimizer has read ``flags`` by itself: the answer is read a step later.

        :meth:`settle` comes before it, so that no step follows one that was not finite.
        """
        assert self._asked is None, "settle comes first"
        self._asked = self._copied(_Step(number, losses, norm, flags, None))

    def settle(self) -> None:
        """Waits for the answer about the last step.

        Raises:
            NonFiniteError: it was not finite.
        """
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if asked.copied is not None:
            asked.copied.synchronize()
        broken, stopped = asked.flags.tolist()
        self._stopped |= bool(stopped)
        if broken:
            self._refuse(asked)

    def _copied(self, step: _Step) -> _Step:
        on_gpu = step.flags.is_cuda
        flags = torch.empty(step.flags.shape, device="cpu", pin_memory=on_gpu)
        flags.copy_(step.flags, non_blocking=True)
        step.copied = torch.cuda.current_stream().record_event() if on_gpu else None
        step.flags = flags
        return step

    def _refuse(self, step: _Step) -> None:
        shown = ", ".join(f"{name} {value.item():g}" for name, value in step.losses.items())
        told = f"step {step.number}: losses ({shown}) or the gradient norm ({step.norm.item():g}) are not finite"
        if self._scaler is not None and self._scaler.get_scale() > 1:
            # fp16 overflowed: its scaler skips this step and halves the scale, as it does in the first steps of a run.
            self._on_skip()
            logger.info("%s in fp16: step skipped, scale was %g", told, self._scaler.get_scale())
            return
        raise NonFiniteError(
            f"{told}; the step was not taken. Lower optim.lr or use runtime.precision 32-true, and run with --resume "
            "auto"
        )
