"""The loop: optimizer groups, schedule, accumulation, finite check, interruption, exact resume."""

import copy
import json
import os
import signal
import time

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from small_engine import batch_of, make_engine, stream
from torch import nn

from avssl.checkpoint import read_checkpoint
from avssl.config import LogConfig, OptimConfig
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.errors import LostProcessError, NonFiniteError
from avssl.tracking import read_rows
from avssl.training.engine import Engine
from avssl.training.task import Task


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

        class Square(Task):
            def __init__(self, layer) -> None:
                super().__init__()
                self.layer = layer

            @property
            def model(self):
                return self.layer

            def forward(self, batch):
                return {"square": self.layer(batch.audio).square().mean()}, {}

        whole = batch_of(0, 8)
        pieces = [whole] if parts == 1 else [piece(whole, slice(0, 4)), piece(whole, slice(4, 8))]
        fabric = Fabric(accelerator="cpu", devices=1)
        engine = Engine(
            fabric,
            Square(linear),
            optim=OptimConfig(accumulate=parts, clip_grad=0),
            log=LogConfig(),
            steps=1,
            tracker=None,
            store=None,
            failures=FailureMonitor(),
            settings={},
        )
        optimizer_step = engine.optimizer.step
        engine.optimizer.step = lambda *a, layer=linear, step=optimizer_step: (
            gradients.append(layer.weight.grad.clone()),
            step(),
        )
        engine.step(pieces)
    torch.testing.assert_close(gradients[0], gradients[1])


def piece(batch: Batch, part: slice) -> Batch:
    return Batch(
        batch.audio[part],
        None,
        {},
        batch.index[part],
        batch.clip_ids[part],
        batch.start[part],
    )


def test_not_finite_stops_before_the_step(tmp_path) -> None:
    engine = make_engine(tmp_path)
    engine.raw_task.poison_at = 4
    seen = {}
    clip = engine.fabric.clip_gradients

    def remember(*arguments, **options):
        seen["weights"] = [p.detach().clone() for p in engine.raw_task.parameters()]
        return clip(*arguments, **options)

    engine.fabric.clip_gradients = remember
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


@pytest.mark.parametrize("step", [3, 4, 12])
@pytest.mark.parametrize("point", ["loading", "forward", "clipping", "logging", "validation", "saving"])
def test_a_signal_at_any_point_of_a_step_changes_no_metric(point: str, step: int, tmp_path) -> None:
    """Steps 4, 8 and 12, the last, validate; 5 and 10 save, 6 is kept."""

    def engine_in(folder) -> Engine:
        return make_engine(folder, validate_every=4, checkpoint_every=5, keep_every=6, monitor="score", ema=0.5)

    def score(engine: Engine):
        return {"score": -abs(engine.progress.step - 8) + engine.model()[0].weight.sum().item() * 1e-3}

    whole = engine_in(tmp_path / "whole")
    assert whole.fit(stream(whole), lambda _: score(whole))

    struck = engine_in(tmp_path / "struck")
    sent = []

    def strike(now: bool = True) -> None:
        if now and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    def loading():
        for number, batch in enumerate(stream(struck), start=1):
            strike(point == "loading" and number == step)
            yield batch

    def around(owner, name: str, completed: int) -> None:
        """Strikes when ``owner.name`` is called with ``completed`` steps done."""
        original = getattr(owner, name)

        def struck_call(*arguments, **named):
            strike(struck.progress.step >= completed)
            return original(*arguments, **named)

        setattr(owner, name, struck_call)

    calls = {
        "forward": (struck.raw_task, "forward", step - 1),
        "clipping": (struck.fabric, "clip_gradients", step - 1),
        "logging": (struck.tracker, "log", step),
        "saving": (struck.store, "save", step),
    }
    if point in calls:
        around(*calls[point])

    def validate(_):
        strike(point == "validation" and struck.progress.step >= step)
        return score(struck)

    ended = struck.fit(loading(), validate)
    assert sent
    again = engine_in(tmp_path / "struck")
    assert ended or again.fit(stream(again), lambda _: score(again))
    assert (tmp_path / "struck/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    final = struck if ended else again
    assert (final.progress.best, final.progress.best_step) == (whole.progress.best, whole.progress.best_step)
    best = [read_checkpoint(tmp_path / name / "checkpoints/best.ckpt") for name in ("struck", "whole")]
    assert best[0]["progress"]["step"] == best[1]["progress"]["step"]
    assert all(torch.equal(value, best[1]["task"][name]) for name, value in best[0]["task"].items())


def test_a_validation_that_is_made_up_for_and_cut_short_is_not_logged_twice(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=6, validate_every=2, monitor="score")
    engine.fit(signalled(engine, 2), lambda _: {"score": 0.5})
    again = make_engine(tmp_path, steps=6, validate_every=2, monitor="score")
    again.save = lambda name: (_ for _ in ()).throw(OSError("killed"))  # its row is written, the checkpoint is not
    with pytest.raises(OSError, match="killed"):
        again.fit(stream(again), lambda _: {"score": 0.5})
    third = make_engine(tmp_path, steps=6, validate_every=2, monitor="score")
    assert third.fit(stream(third), lambda _: {"score": 0.5})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if "val/score" in row] == [2, 4, 6]


def signalled(engine: Engine, step: int):
    """Batches; SIGTERM comes with those of ``step``."""
    for number, batch in enumerate(stream(engine), start=1):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_changes_no_metric_of_a_run_that_goes_on(name: str, tmp_path, caplog) -> None:
    whole = make_engine(tmp_path / "whole", checkpoint_every=2, validate_every=4, monitor="score")
    whole.fit(stream(whole), lambda _: {"score": float(whole.progress.step)})
    parts = make_engine(tmp_path / "parts", checkpoint_every=2, validate_every=4, monitor="score")
    parts.fit(signalled(parts, 7), lambda _: {"score": float(parts.progress.step)})
    (tmp_path / "parts/checkpoints" / name).write_bytes(b"cut short")
    again = make_engine(tmp_path / "parts", checkpoint_every=2, validate_every=4, monitor="score")
    assert again.progress.step == {"last.ckpt": 6, "best.ckpt": 7}[name]
    assert ("the newest whole one, of step 6" in caplog.text) == (name == "last.ckpt")
    assert again.fit(stream(again), lambda _: {"score": float(again.progress.step)})
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert again.use_best()


def test_damaged_best_weights_are_not_used(tmp_path, caplog) -> None:
    engine = make_engine(tmp_path, steps=4, validate_every=2, monitor="score")
    scores = iter([0.9, 0.1])
    engine.fit(stream(engine), lambda _: {"score": next(scores)})
    (tmp_path / "checkpoints/best.ckpt").write_bytes(b"cut short")
    assert not engine.use_best() and "using the last weights instead of the best, of step 2" in caplog.text


def test_best_and_kept_checkpoints(tmp_path, caplog) -> None:
    caplog.set_level("INFO", "avssl.training.engine")
    engine = make_engine(tmp_path, steps=6, validate_every=2, keep_every=3, monitor="score")
    scores = iter([0.1, 0.9, 0.5])
    engine.fit(stream(engine), lambda _: {"score": next(scores)})
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {"last.ckpt", "best.ckpt", "step-3.ckpt", "step-6.ckpt"}
    assert read_checkpoint(tmp_path / "checkpoints/best.ckpt")["progress"]["step"] == 4
    assert [row["val/score"] for row in read_rows(tmp_path / "metrics.jsonl") if "val/score" in row] == [0.1, 0.9, 0.5]
    told = [record.getMessage() for record in caplog.records if "validation" in record.getMessage()]
    assert told == [
        "step 2: validation score 0.1000",
        "step 4: validation score 0.9000; best before: 0.1000 at step 2",
        "step 6: validation score 0.5000; best before: 0.9000 at step 4",
    ]


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_weights_come_back(ema, tmp_path) -> None:
    engine = make_engine(tmp_path, steps=6, validate_every=2, monitor="score", ema=ema)
    scores, weights = iter([0.1, 0.9, 0.5]), []

    def validate(model: nn.Module) -> dict[str, float]:
        weights.append(copy.deepcopy(model.state_dict()))
        return {"score": next(scores)}

    engine.fit(stream(engine), validate)
    again = make_engine(tmp_path, steps=6, validate_every=2, monitor="score", ema=ema)  # at its end, by last.ckpt
    for one in (engine, again):
        assert one.use_best() and (one.progress.step, one.progress.best_step) == (6, 4)
        for name, value in one.model().state_dict().items():
            assert torch.equal(value, weights[1][name])


def test_of_equal_scores_the_latest_is_best_but_patience_runs_out(tmp_path) -> None:
    """With few clips a validation is perfect long before training is over."""
    engine = make_engine(tmp_path / "one", steps=8, validate_every=2, monitor="score")
    scores = iter([0.2, 1.0, 1.0, 0.5])
    engine.fit(stream(engine), lambda _: {"score": next(scores)})
    assert engine.progress.best_step == 6
    patient = make_engine(tmp_path / "two", steps=20, validate_every=2, monitor="score", patience=2)
    patient.fit(stream(patient), lambda _: {"score": 1.0})
    assert patient.progress.step == patient.progress.best_step == 6
    nothing = make_engine(tmp_path / "three", steps=2, validate_every=2, monitor="score")
    nothing.fit(stream(nothing), lambda _: {"score": float("nan")})
    assert nothing.progress.best_step == -1 and not nothing.use_best()


def test_a_best_checkpoint_of_another_step_is_not_taken_for_it(tmp_path, caplog) -> None:
    engine = make_engine(tmp_path, steps=4, validate_every=2, monitor="score")
    scores = iter([0.9, 0.1])
    engine.fit(stream(engine), lambda _: {"score": next(scores)})
    last = copy.deepcopy(engine.model().state_dict())
    os.replace(tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/best.ckpt")
    assert not engine.use_best() and "not of step 2, which was best: using the last weights" in caplog.text
    assert all(torch.equal(value, last[name]) for name, value in engine.model().state_dict().items())
    without = make_engine(tmp_path / "other", steps=2)
    without.fit(stream(without))
    assert not without.use_best()


def test_the_best_of_another_run_is_not_this_ones(tmp_path) -> None:
    engine = make_engine(tmp_path / "one", steps=8, validate_every=2, keep_every=4, monitor="score")
    engine.fit(stream(engine), lambda _: {"score": 0.9})
    other = make_engine(tmp_path / "two", steps=8, validate_every=2, monitor="score")
    other.resume(tmp_path / "one" / "checkpoints" / "step-4.ckpt")
    assert other.progress.step == 4
    other.fit(stream(other), lambda _: {"score": 0.5})
    assert other.progress.best_step == 8 and other.use_best()


def test_checkpoints_hold_plain_values_only(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=2)
    engine.fit(stream(engine))
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    json.dumps(state["settings"])
    assert state["progress"]["step"] == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_metrics_are_on_the_disk_before_the_checkpoint_of_their_step(tmp_path, monkeypatch) -> None:
    engine = make_engine(tmp_path, steps=2)
    seen, sync = [], os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    engine.fit(stream(engine))
    assert seen == ["metrics.jsonl", "speed.jsonl", ".last.ckpt.partial", "checkpoints"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    engine = make_engine(tmp_path, steps=2)
    engine.fit(stream(engine))
    before = (tmp_path / "checkpoints/last.ckpt").read_bytes()

    def full(path, state):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.store.fabric, "save", full)
    with pytest.raises(OSError, match=r"last\.ckpt: No space left on device; free some space and run"):
        engine.save("last.ckpt")
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.fixture
def group(tmp_path):
    """A process group, of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


GONE = {
    "gloo": RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:5"
    ),
    "gloo waits": RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800 s"
    ),
    "nccl": torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
    "store": torch.distributed.DistNetworkError("failed to recv, got 0 bytes"),
}


@pytest.mark.parametrize("told", GONE)
@pytest.mark.parametrize("point", ["save", "barrier", "broadcast"])
def test_a_lost_process_is_told_as_that_at_any_collective(point: str, told: str, group, tmp_path, monkeypatch) -> None:
    engine = make_engine(tmp_path, steps=4, checkpoint_every=2, validate_every=3)

    def gone(*_):
        raise GONE[told]

    monkeypatch.setattr(engine.fabric, point, gone)
    with pytest.raises(LostProcessError, match=r"lost another one at step [23]"):
        engine.fit(stream(engine), lambda _: {"score": 1.0})
    assert not list(tmp_path.rglob("*.partial"))


def test_only_a_full_disk_speaks_of_space(tmp_path, monkeypatch) -> None:
    engine = make_engine(tmp_path, steps=2)
    # As torch's writer tells it, and another error of a disk.
    for error in (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), OSError(5, "")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(engine.fabric, "save", fail)
        with pytest.raises(OSError, match=r"cannot write checkpoint .*last\.ckpt: (?!.*space).*--resume auto"):
            engine.save("last.ckpt")
    # No failed write at all: a defect, which shows itself.
    monkeypatch.setattr(engine.fabric, "save", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        engine.fit(stream(engine))


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


def test_patience_ends_a_run_that_gets_no_better(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=100, validate_every=2, monitor="score", patience=3)
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    assert engine.fit(stream(engine), lambda _: {"score": next(scores)})
    assert (engine.progress.step, engine.progress.best, engine.progress.best_step) == (10, 0.5, 8)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["progress"]["step"] == 10
    again = make_engine(tmp_path, steps=100, validate_every=2, monitor="score", patience=3)
    assert again.fit(stream(again), lambda _: {"score": 1.0}) and again.progress.step == 10


def test_speed_tells_throughput_and_the_share_of_waiting(tmp_path) -> None:
    engine = make_engine(tmp_path, steps=3)

    def slow():
        for batch in stream(engine):
            time.sleep(0.05)
            yield batch

    engine.fit(slow())
    rows = read_rows(tmp_path / "speed.jsonl")
    assert all(row["clips_per_second"] > 0 and 0 < row["data_wait"] <= 1 for row in rows)


def test_fp16_skips_a_step_that_overflows_and_resumes_with_its_scale(tmp_path) -> None:
    def half_engine() -> Engine:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        return make_engine(tmp_path, fabric=Fabric(accelerator="cpu", devices=1, plugins=[precision]))

    engine = half_engine()
    before = [parameter.detach().clone() for parameter in engine.raw_task.parameters()]
    engine.step([batch_of(0)])  # 2^20 times these gradients is beyond fp16
    assert engine.progress.skipped == 1 and engine.scaler.get_scale() == 2.0**19
    for old, new in zip(before, engine.raw_task.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)
    assert engine.fit(stream(engine))
    assert any((old != new).any() for old, new in zip(before, engine.raw_task.parameters(), strict=True))
    resumed = half_engine()
    assert resumed.scaler.get_scale() == engine.scaler.get_scale()
    assert resumed.progress.skipped == engine.progress.skipped
    row = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert row["train/scale"] == engine.scaler.get_scale() and row["train/skipped"] == engine.progress.skipped


def test_bfloat16_trains_and_resumes_exactly(tmp_path) -> None:
    def run(folder, steps: int):
        engine = make_engine(folder, fabric=Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
        engine.max_steps = steps
        engine.fit(stream(engine))
        return read_rows(folder / "metrics.jsonl")

    straight = run(tmp_path / "straight", 12)
    run(tmp_path / "resumed", 5)
    assert run(tmp_path / "resumed", 12) == straight
    exact = make_engine(tmp_path / "exact")
    exact.fit(stream(exact))
    losses = [row["train/loss"] for row in read_rows(tmp_path / "exact" / "metrics.jsonl")]
    rounded = [row["train/loss"] for row in straight]
    assert rounded != losses and rounded == pytest.approx(losses, rel=0.1, abs=0.1)


def test_what_every_process_could_not_read_is_kept_and_counted_on(tmp_path) -> None:
    """Of two processes; one goes on with all that failed."""
    assert make_engine(tmp_path, steps=4).fit(stream(make_engine(tmp_path / "other", steps=4)))
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    first = {"path": "b.wav", "reason": "corrupt", "index": 1, "message": "b.wav: corrupt"}
    state["progress"]["failures"] = {
        "processes": [
            {"seen": 16, "failed": 0, "reasons": {}, "first": None},
            {"seen": 17, "failed": 1, "reasons": {"corrupt": 1}, "first": first},
        ]
    }
    torch.save(state, path)
    engine = make_engine(tmp_path, steps=4)
    told = {"seen": 33, "failed": 1, "share": 1 / 33, "reasons": {"corrupt": 1}, "first": "b.wav: corrupt"}
    assert engine.all_failures() == told == engine.failures.summary()
    state["progress"]["failures"] = state["progress"]["failures"]["processes"][1]  # as earlier versions wrote them
    torch.save(state, path)
    assert make_engine(tmp_path, steps=4).failures.summary()["failed"] == 1
