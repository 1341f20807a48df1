"""A task of a few numbers under the engine, for tests of the loop and of what it keeps."""

import torch
from lightning_fabric import Fabric
from torch import nn

from avssl.checkpoint import CheckpointStore
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.tracking import Tracker
from avssl.training.engine import Engine, Schedule, Task
from avssl.training.optimizer import make_optimizer, make_scheduler


def batch_of(step: int, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(
        audio=torch.randn(size, 6, generator=generator),
        video=None,
        labels={},
        index=torch.arange(size),
        clip_ids=[str(i) for i in range(size)],
        start=torch.zeros(size, dtype=torch.float64),
    )


class Regression(Task):
    """Predicts the sum of the inputs, through dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.poison_at = -1
        self.calls = 0

    @property
    def model(self) -> nn.Module:
        return self.body

    def forward(self, batch: Batch):
        self.calls += 1
        loss = (self.body(batch.audio)[:, 0] - batch.audio.sum(1)).square().mean()
        if self.calls == self.poison_at:
            loss = loss * float("nan")
        return {"square": loss}, {"mean": batch.audio.mean()}


def make_engine(folder, steps: int = 12, *, ema=None, fabric=None, fused: bool = True, **schedule) -> Engine:
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    folder.mkdir(exist_ok=True)
    task = Regression()
    store = CheckpointStore(fabric, folder / "checkpoints")
    latest = store.latest("auto")
    tracker = Tracker(folder, {}, mode="disabled", resumed=latest is not None)
    engine = Engine(
        fabric,
        task,
        lambda task: make_optimizer(task, lr=0.01, weight_decay=0.1, fused=fused),
        lambda optimizer: make_scheduler(optimizer, max_steps=steps, warmup=0.25, lr=0.01, min_lr=1e-4),
        Schedule(steps, log_every=1, **schedule),
        tracker,
        store,
        FailureMonitor(),
        {"kind": "test"},
        seed=3,
        ema=ema,
    )
    if latest:
        engine.resume(latest)
    return engine


def stream(engine: Engine):
    step = engine.progress.step * engine.schedule.accumulate
    while True:
        yield batch_of(step)
        step += 1
