"""A task of a few numbers under the engine, for tests of the loop and of what it keeps."""

import torch
from lightning_fabric import Fabric
from torch import nn

from avssl.checkpoint import CheckpointStore
from avssl.config import LogConfig, OptimConfig
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.tracking import Tracker
from avssl.training.engine import Engine
from avssl.training.task import Task


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


def make_engine(folder, steps: int = 12, *, ema=None, fabric=None, monitor=None, **log) -> Engine:
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    folder.mkdir(exist_ok=True)
    store = CheckpointStore(fabric, folder / "checkpoints")
    latest = store.latest("auto")
    engine = Engine(
        fabric,
        Regression(),
        optim=OptimConfig(lr=0.01, weight_decay=0.1, warmup=0.25, min_lr=1e-4, ema=ema),
        log=LogConfig(**({"every": 1, "checkpoint_every": 0} | log)),
        steps=steps,
        monitor=monitor,
        tracker=Tracker(folder, {}, mode="disabled", resumed=latest is not None),
        store=store,
        failures=FailureMonitor(),
        settings={"kind": "test"},
        seed=3,
    )
    if latest:
        engine.resume(latest)
    return engine


def stream(engine: Engine):
    step = engine.progress.step * engine.optim.accumulate
    while True:
        yield batch_of(step)
        step += 1
