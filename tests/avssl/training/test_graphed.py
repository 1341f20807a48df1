"""Steps by graphs train as those without, in weights, metrics and random numbers; what does not fit goes plainly."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_engine
import torch
from graph_standins import Recorded, Taped
from small_engine import batch_of, make_engine, stream
from torch import Tensor, nn

from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import LogConfig, OptimConfig
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.errors import NonFiniteError
from avssl.models import AudioClassifier, AudioVisualPair
from avssl.objectives import Shapes, create_objective
from avssl.tracking import read_rows
from avssl.training.engine import Engine
from avssl.training.finetuning import FinetuneTask
from avssl.training.graphed import GraphedStep
from avssl.training.pretraining import PretrainTask
from mast.fast.cuda.graphs import Graphed


class Prepared(small_engine.Regression):
    """The small task, which says what a step needs; its input is drawn."""

    drawing = ("draw_audio",)

    def draw_audio(self, waveform: Tensor) -> Tensor:
        return waveform + 0.1 * torch.randn_like(waveform)

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        return {"audio": self.draw_audio(batch.audio)}

    def compute(self, given: dict[str, Tensor]):
        return super().forward(replace(batch_of(0), audio=given["audio"]))

    def forward(self, batch: Batch):
        return self.compute(self.prepare(batch))


class Encoded(small_engine.Regression):
    """The small task, whose body is an encoder by graphs, and which has a head and a scale beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body[3] = nn.Linear(8, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, batch: Batch):
        loss = (self.head(self.body(batch.audio))[:, 0] - batch.audio.sum(1)).square().mean()
        return {"square": loss, "size": 0.1 * self.head.weight.square().sum()}, {}


def engine_of(task: type, folder: Path, graphs: bool, monkeypatch: pytest.MonkeyPatch, **settings) -> Engine:
    """An engine on the CPU whose answers are read a step later, as on a GPU."""
    monkeypatch.setattr(small_engine, "Regression", task)
    engine = make_engine(folder, **settings)
    engine.finite.later = True
    if graphs:
        with_graphs(engine)
    return engine


def with_graphs(engine: Engine) -> None:
    engine.finite.later = True
    optimizer = engine.optimizer.optimizer
    engine.graphs = GraphedStep(
        engine.fabric, engine.raw_task, optimizer, engine.finite, engine.gradient_norm, record=Taped
    )


def check_same(found: list[Engine]) -> None:
    for mine, its in zip(*(list(engine.raw_task.state_dict().values()) for engine in found), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    states = [[each for state in engine.optimizer.state.values() for each in state.values()] for engine in found]
    for mine, its in zip(*states, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Prepared, Encoded], ids=["whole", "last part"])
def test_a_run_by_graphs_is_the_run_without(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engines, rows = [], []
    for graphs in (False, True):
        folder = tmp_path / str(graphs)
        engine = engine_of(kind, folder, False, monkeypatch, ema=0.9, checkpoint_every=4)
        if graphs and kind is Encoded:
            engine.raw_task.body.forward = Graphed(engine.raw_task.body, capture=Recorded)
        if graphs:
            with_graphs(engine)
        assert engine.fit(stream(engine))
        engines.append(engine)
        rows.append(read_rows(folder / "metrics.jsonl"))
    check_same(engines)
    for mine, its in zip(engines[0].average.parameters(), engines[1].average.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    for mine, its in zip(*rows, strict=True):
        assert mine.keys() == its.keys() and all(mine[key] == pytest.approx(its[key], rel=1e-4) for key in mine)
    part = engines[1].graphs._whole if kind is Prepared else engines[1].graphs._last
    assert part.recording is not None, "the schedule's learning rates went through a graph"
    assert "operator by operator" not in caplog.text
    group = engines[1].optimizer.param_groups[0]
    assert isinstance(group["lr"], float) and not group["capturable"], "checkpoints hold what they held"


def test_a_run_by_graphs_goes_on_from_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine_of(Prepared, tmp_path / "whole", False, monkeypatch)
    assert whole.fit(stream(whole))
    folder = tmp_path / "parts"
    for graphs, stop in ((False, 4), (True, 8), (True, 12)):
        engine = engine_of(Prepared, folder, graphs, monkeypatch, checkpoint_every=4)
        engine.max_steps = stop
        assert engine.fit(stream(engine))
        engine.finite.settle()
    check_same([whole, engine])


def test_other_batches_are_computed_plainly_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engines = [engine_of(Prepared, tmp_path / str(graphs), graphs, monkeypatch) for graphs in (False, True)]
    for engine in engines:
        for number, size in enumerate((4, 4, 4, 3, 4, 2, 4)):
            engine.step([batch_of(number, size)])
        engine.step([batch_of(7), batch_of(8)])  # two batches
        for parameter in engine.raw_task.body[0].parameters():  # in place, and elsewhere
            with torch.no_grad():
                parameter.mul_(1.5)
        engine.step([batch_of(9)])
        engine.raw_task.body[0].weight.data = 2 * engine.raw_task.body[0].weight.data
        engine.step([batch_of(10)])
        engine.optimizer.param_groups[0]["weight_decay"] = 0.5
        engine.step([batch_of(11)])
    check_same(engines)
    for reason in ("its graph is for inputs of 4 x 6 alone", "what it reads has moved"):
        assert caplog.text.count(f"training step operator by operator: {reason}") == 1


@pytest.mark.parametrize("at", [1, 5])
def test_a_step_that_is_not_finite_is_left_out(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(Prepared, tmp_path, True, monkeypatch, checkpoint_every=100)
    for number in range(at):
        engine.step([batch_of(number)])
    weights = [parameter.clone() for parameter in engine.raw_task.parameters()]
    engine.step([replace(batch_of(at), audio=torch.full((4, 6), float("nan")))])
    assert all(torch.equal(a, b) for a, b in zip(weights, engine.raw_task.parameters(), strict=True))
    with pytest.raises(NonFiniteError, match=rf"step {at if at else 0}|step 0"):
        engine.step([batch_of(at + 1)])
    assert all(torch.equal(a, b) for a, b in zip(weights, engine.raw_task.parameters(), strict=True))


class Listening(Prepared):
    """The small task, which draws through a frontend."""

    def __init__(self) -> None:
        super().__init__()
        self.ear = nn.Softplus()

    @property
    def frontend(self) -> nn.Module:
        return self.ear

    def draw_audio(self, waveform: Tensor) -> Tensor:
        with torch.no_grad():
            return self.ear(super().draw_audio(waveform))


def test_the_frontend_is_compiled_in_its_graph_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *x: (calls.append(len(x[0])), function(*x))[1])
    engines = [engine_of(Listening, tmp_path / str(graphs), False, monkeypatch) for graphs in (False, True)]
    task = engines[1].raw_task
    parts = (engines[1].fabric, task, engines[1].optimizer.optimizer, engines[1].finite, engines[1].gradient_norm)
    engines[1].graphs = GraphedStep(*parts, task.frontend, record=Taped)
    for engine in engines:
        for number, size in enumerate((4, 4, 3, 4)):
            engine.step([batch_of(number, size)])
    check_same(engines)
    assert calls and set(calls) == {4} and task.ear._compiled_call_impl is None
    assert set(engines[1].graphs.in_use()) == {"draw_audio", "training step"}


def test_no_node_of_an_earlier_pass_is_alive_when_a_graph_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the stream that it was made on, which breaks a capture."""
    engine = engine_of(Prepared, tmp_path, True, monkeypatch)
    weight, alive = engine.raw_task.body[0].weight, []
    engine.raw_task.body.register_forward_hook(lambda *_: node_of(weight).metadata.update(earlier=True))
    record = Taped.__init__
    monkeypatch.setattr(
        Taped, "__init__", lambda tape, run: (alive.append("earlier" in node_of(weight).metadata), record(tape, run))[1]
    )
    for number in range(3):
        engine.step([batch_of(number)])
    assert engine.graphs._whole.recording is not None and alive and not any(alive)


def node_of(weight: Tensor):
    """What takes the weight's gradient: the same one as long as anything keeps it alive."""
    return weight.view_as(weight).grad_fn.next_functions[0][0]


def clips(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    return Batch(
        audio=0.1 * torch.randn(4, 2000, generator=generator),
        video=torch.randint(0, 256, (4, 3, 2, 40, 40), dtype=torch.uint8, generator=generator),
        labels={"verb": torch.tensor([0, 1, -1, number % 2]), "noun": torch.tensor([2, 0, 1, 1])},
        index=torch.arange(4),
        clip_ids=[str(k) for k in range(4)],
        start=torch.zeros(4, dtype=torch.float64),
    )


SMALL = {"embed_dim": 8, "depths": [1], "q_strides": [[1, 1]], "kv_strides": [[2, 4]], "drop_path": 0.5}
AUGMENT = {"wave": WaveAugment(time_shift=0.2, noise_db=20.0), "spectrogram": SpectrogramAugment(masks=2)}


def finetuning() -> FinetuneTask:
    import mast

    encoder = mast.create_model("mast_pico", **SMALL)
    classifier = AudioClassifier(encoder, mast.LogMel(), {"verb": ["a", "b"], "noun": ["c", "d", "e"]})
    return FinetuneTask(classifier, **AUGMENT, mixup_alpha=0.5)


def pretraining() -> PretrainTask:
    pair = AudioVisualPair.build(
        audio="mast_pico", audio_options=SMALL, video="tiny", num_frames=2, crop_size=32, embedding_dim=8,
        projections={"infonce": {}},
    )  # fmt: skip
    shapes = Shapes(
        joint=8, audio=pair.audio.num_features, video=pair.video.num_features, clips=4, audio_stride=pair.audio.stride
    )
    video = VideoAugment(32, blur=0.5, hue=0.1, gray=0.2)
    return PretrainTask(pair, [("infonce", create_objective("infonce", shapes), 1.0)], **AUGMENT, video=video)


@pytest.mark.parametrize("make", [finetuning, pretraining])
def test_tasks_by_graphs_train_as_without(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAST_NATIVE", "0")  # as on a GPU
    engines, losses = [], []
    for graphs in (False, True):
        torch.manual_seed(0)
        engine = Engine(
            small_engine.Fabric(accelerator="cpu", devices=1),
            make(),
            optim=OptimConfig(lr=1e-3, weight_decay=0.1, min_lr=1e-5),
            log=LogConfig(every=100),
            steps=100,
            tracker=None,  # type: ignore[arg-type]  # steps that are not logged need no tracker
            store=None,  # type: ignore[arg-type]
            failures=FailureMonitor(),
            settings={},
        )
        engine.finite.later = True
        if graphs:
            with_graphs(engine)
        engine.task.train()
        losses.append([])
        for number in range(3):
            found, report, norm, _ = engine.step([clips(number)])
            losses[-1].append({**found, **report, "norm": norm})
            engine.progress.step += 1
        engines.append(engine)
    for mine, its in zip(*losses, strict=True):
        assert mine.keys() == its.keys()
        for key in mine:
            torch.testing.assert_close(mine[key], its[key], rtol=2e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    whole = engines[1].graphs._whole
    assert (whole.recording is not None) == (make is finetuning), "pretraining's encoders have graphs of their own"
    assert not whole._said
