"""The loop: optimizer groups, schedule, accumulation, finite check, interruption, exact resume."""

import json
import os
import signal

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from avssl.checkpoint import CheckpointStore, read_checkpoint
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.engine import Engine, NonFiniteError, Schedule, make_optimizer, make_scheduler
from avssl.tracking import Tracker, read_rows


def batch_of(step: int, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(
        audio=torch.randn(size, 6, generator=generator),
        video=None,
        labels={},
        index=torch.arange(size),
        clip_ids=[str(i) for i in range(size)],
        start=torch.zeros(size, dtype=torch.float64),
        audio_fraction=torch.ones(size),
    )


class Regression(nn.Module):
    """Predicts the sum of the inputs, through dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.poison_at = -1
        self.calls = 0

    def forward(self, batch: Batch):
        self.calls += 1
        loss = (self.body(batch.audio)[:, 0] - batch.audio.sum(1)).square().mean()
        if self.calls == self.poison_at:
            loss = loss * float("nan")
        return {"square": loss}, {"mean": batch.audio.mean()}


def make_engine(folder, steps: int = 12, **schedule) -> Engine:
    fabric = Fabric(accelerator="cpu", devices=1)
    folder.mkdir(exist_ok=True)
    task = Regression()
    optimizer = make_optimizer(task, lr=0.01, weight_decay=0.1)
    scheduler = make_scheduler(optimizer, max_steps=steps, warmup=0.25, lr=0.01, min_lr=1e-4)
    store = CheckpointStore(fabric, folder / "checkpoints")
    latest = store.latest("auto")
    tracker = Tracker(folder, {}, mode="disabled", resumed=latest is not None)
    engine = Engine(
        fabric,
        task,
        optimizer,
        scheduler,
        Schedule(steps, log_every=1, **schedule),
        tracker,
        store,
        FailureMonitor(),
        {"kind": "test"},
        seed=3,
    )
    if latest:
        engine.resume(latest)
    return engine


def stream(engine: Engine):
    step = engine.progress.step * engine.schedule.accumulate
    while True:
        yield batch_of(step)
        step += 1


def test_norms_biases_and_listed_parameters_have_no_decay() -> None:
    class Listed(Regression):
        def no_weight_decay(self):
            return {"body.3.weight"}

    task = nn.ModuleDict({"inner": Listed()})
    decay, spared = make_optimizer(task, lr=1.0, weight_decay=0.1).param_groups
    assert [tuple(p.shape) for p in decay["params"]] == [(8, 6)] and decay["weight_decay"] == 0.1
    assert len(spared["params"]) == 5 and spared["weight_decay"] == 0.0


def test_schedule_warms_up_and_decays() -> None:
    optimizer = make_optimizer(Regression(), lr=0.01, weight_decay=0.0)
    scheduler = make_scheduler(optimizer, max_steps=100, warmup=0.1, lr=0.01, min_lr=1e-4)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.001) and max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) in (9, 10) and rates[-1] == pytest.approx(1e-4)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_trains_and_logs(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=200)
    assert engine.fit(stream(engine))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 201))
    losses = [row["train/loss"] for row in rows]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert {"train/lr", "train/gradient_norm", "train/mean", "train/failures"} <= rows[0].keys()
    assert read_rows(tmp_path / "speed.jsonl")[0]["clips_per_second"] > 0


def test_accumulation_equals_one_big_batch() -> None:
    gradients = []
    for parts in (1, 2):
        torch.manual_seed(0)
        linear = nn.Linear(6, 1)

        class Task(nn.Module):
            def __init__(self, layer) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, batch):
                return {"square": self.layer(batch.audio).square().mean()}, {}

        whole = batch_of(0, 8)
        pieces = [whole] if parts == 1 else [piece(whole, slice(0, 4)), piece(whole, slice(4, 8))]
        fabric = Fabric(accelerator="cpu", devices=1)
        task = Task(linear)
        optimizer = torch.optim.SGD(task.parameters(), lr=0.0)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        engine = Engine(
            fabric,
            task,
            optimizer,
            scheduler,
            Schedule(1, accumulate=parts, clip_grad=0),
            None,
            None,
            FailureMonitor(),
            {},
        )
        optimizer_step = engine.optimizer.step
        engine.optimizer.step = lambda *a, layer=linear, step=optimizer_step: (
            gradients.append(layer.weight.grad.clone()),
            step(),
        )
        engine._step(pieces)
    torch.testing.assert_close(gradients[0], gradients[1])


def piece(batch: Batch, part: slice) -> Batch:
    return Batch(
        batch.audio[part],
        None,
        {},
        batch.index[part],
        batch.clip_ids[part],
        batch.start[part],
        batch.audio_fraction[part],
    )


def test_not_finite_stops_before_the_step(tmp_path) -> None:
    engine = make_engine(tmp_path)
    engine.raw_task.poison_at = 4
    seen = {}
    original = engine._gradient_norm

    def remember():
        seen["weights"] = [p.detach().clone() for p in engine.raw_task.parameters()]
        return original()

    engine._gradient_norm = remember
    with pytest.raises(NonFiniteError, match="step 3: losses"):
        engine.fit(stream(engine))
    for before, after in zip(seen["weights"], engine.raw_task.parameters(), strict=True):
        torch.testing.assert_close(before, after)


def test_interrupted_equals_uninterrupted(tmp_path) -> None:
    whole = make_engine(tmp_path / "whole", checkpoint_every=5)
    whole.fit(stream(whole))

    class Killed(Exception):
        pass

    def dying(engine, at):
        for number, batch in enumerate(stream(engine)):
            if number == at:
                raise Killed
            yield batch

    parts = make_engine(tmp_path / "parts", checkpoint_every=5)
    with pytest.raises(Killed):
        parts.fit(dying(parts, 8))
    again = make_engine(tmp_path / "parts", checkpoint_every=5)
    assert again.progress.step == 5
    again.fit(stream(again))
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    for mine, theirs in zip(again.raw_task.parameters(), whole.raw_task.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_ends(number, tmp_path) -> None:
    engine = make_engine(tmp_path)

    def signalling():
        for step, batch in enumerate(stream(engine)):
            if step == 3:
                os.kill(os.getpid(), number)
            yield batch

    assert engine.fit(signalling()) is False
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["progress"]["step"] == engine.progress.step == 4
    again = make_engine(tmp_path)
    assert again.fit(stream(again)) and again.progress.step == 12


def test_best_and_kept_checkpoints(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=6, validate_every=2, keep_every=3, monitor="score")
    scores = iter([0.1, 0.9, 0.5])
    engine.fit(stream(engine), lambda: {"score": next(scores)})
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {"last.ckpt", "best.ckpt", "step-3.ckpt", "step-6.ckpt"}
    assert read_checkpoint(tmp_path / "checkpoints/best.ckpt")["progress"]["step"] == 4
    assert [row["val/score"] for row in read_rows(tmp_path / "metrics.jsonl") if "val/score" in row] == [0.1, 0.9, 0.5]


def test_checkpoints_hold_plain_values_only(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=2)
    engine.fit(stream(engine))
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    json.dumps(state["settings"])
    assert state["progress"]["step"] == 2


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    engine = make_engine(tmp_path, steps=2)
    engine.fit(stream(engine))
    before = (tmp_path / "checkpoints/last.ckpt").read_bytes()

    def full(path, state):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.store.fabric, "save", full)
    with pytest.raises(OSError, match=r"last\.ckpt: No space left"):
        engine.save("last.ckpt")
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_foreign_files_are_refused(tmp_path) -> None:
    other = tmp_path / "other.ckpt"
    torch.save({"weights": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="has no settings"):
        read_checkpoint(other)
    other.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint of avssl"):
        read_checkpoint(other)
    engine = make_engine(tmp_path / "run")
    torch.save({"settings": {}, "task": {"strange": torch.zeros(1)}, "optimizer": {}}, other)
    with pytest.raises(ValueError, match="does not fit this run"):
        engine.resume(other)


def test_unreadable_clips_abort_with_the_first_cause(tmp_path) -> None:
    from dataclasses import replace

    from avssl.data.failures import DataError, Failure

    engine = make_engine(tmp_path)
    broken = replace(batch_of(0), failures=[Failure("a.mp4", "no audio stream")] * 200)
    with pytest.raises(DataError, match=r"a\.mp4: no audio stream"):
        engine.fit(iter([broken] * 5))
