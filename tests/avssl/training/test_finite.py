"""No step that is not finite is taken, whether that is known at once or a step later."""

from pathlib import Path

import pytest
import torch
from small_engine import batch_of, make_engine, stream

from avssl.checkpoint import read_checkpoint
from avssl.errors import NonFiniteError
from avssl.tracking import read_rows
from avssl.training.engine import Engine


def engine_in(folder: Path, later: bool, every: int = 1, **settings: int) -> Engine:
    engine = make_engine(folder, every=every, **settings)
    assert not engine.finite.later, "a CPU's answer is there at once"
    engine.finite.later = later
    return engine


def weights(engine: Engine) -> list[torch.Tensor]:
    state = engine.optimizer.state_dict()["state"]
    moments = [value.clone() for each in state.values() for value in each.values()]
    return [*(parameter.detach().clone() for parameter in engine.raw_task.parameters()), *moments]


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("later", [False, True])
def test_the_step_is_not_taken_and_named(later: bool, every: int, tmp_path: Path) -> None:
    engine = engine_in(tmp_path, later, every, checkpoint_every=2)
    engine.raw_task.poison_at = 4
    taken = []
    after_step = engine.raw_task.after_step
    engine.raw_task.after_step = lambda *step: (taken.append(weights(engine)), after_step(*step))
    with pytest.raises(NonFiniteError, match=r"step 3: losses \(square nan\).* the step was not taken"):
        engine.fit(stream(engine))
    for before, now in zip(taken[2], weights(engine), strict=True):
        assert torch.equal(before, now)
    assert len(taken) == (4 if later else 3), "known after the step's work was asked for, or before"
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["progress"]["step"] == 2
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == ([1, 2, 3] if every == 1 else [])


def test_the_processor_goes_on_to_the_next_step(tmp_path: Path) -> None:
    engine = engine_in(tmp_path, True)
    engine.raw_task.poison_at = 1
    engine.step([batch_of(0)])
    before = weights(engine)
    with pytest.raises(NonFiniteError, match="step 0"):
        engine.step([batch_of(1)])
    for old, new in zip(before, weights(engine), strict=True):
        assert torch.equal(old, new)


def test_nothing_is_saved_of_a_step_that_was_not_finite(tmp_path: Path) -> None:
    engine = engine_in(tmp_path, True)
    engine.raw_task.poison_at = 1
    engine.step([batch_of(0)])
    with pytest.raises(NonFiniteError, match="step 0"):
        engine.save("last.ckpt")
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_training_and_resuming_are_the_same(tmp_path: Path) -> None:
    found = []
    for later in (False, True):
        folder = tmp_path / str(later)
        engine = engine_in(folder, later, checkpoint_every=5)
        engine.raw_task.poison_at = 8 if later else -1
        if later:
            with pytest.raises(NonFiniteError):
                engine.fit(stream(engine))
            engine = engine_in(folder, later, checkpoint_every=5)
            assert engine.progress.step == 5
        assert engine.fit(stream(engine))
        found.append((weights(engine), (folder / "metrics.jsonl").read_bytes()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1] == found[1][1]


def test_several_processes_stop_at_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        engine = engine_in(tmp_path, True)
        monkeypatch.setattr(type(engine.fabric), "world_size", property(lambda fabric: 2))
        assert [engine.step([batch_of(n)], stop)[-1] for n, stop in enumerate([(), (15,), (), ()])] == [
            *(False, False),  # what another process was told is known a step later, and so is what this one was
            *(True, False),
        ]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_a_gpu_leaves_the_step_out_by_itself(tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    engine = make_engine(tmp_path, fabric=Fabric(accelerator="cuda", devices=1))
    assert engine.finite.later
    engine.step([batch_of(0)])
    before = weights(engine)
    engine.raw_task.poison_at = 2
    engine.step([batch_of(1)])
    for old, new in zip(before, weights(engine), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(NonFiniteError, match="step 0"):  # these steps are counted by fit
        engine.step([batch_of(2)])
