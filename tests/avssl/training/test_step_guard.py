"""How often a training step waits for its device: counted, since a GPU that waits shows in no test's time."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import avssl
import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import LogConfig, OptimConfig
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.models import AudioVisualPair
from avssl.objectives import Shapes, create_objective
from avssl.training.engine import Engine
from avssl.training.optimizer import ExponentialAverage
from avssl.training.pretraining import PretrainTask

# Operators whose result Python or the size of a tensor depends on: on a GPU each waits for all that was asked before.
WAITING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
# Methods that copy to the CPU's memory, which a CPU's tensors do without an operator.
COPYING = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__)
OURS = tuple(str(Path(package.__file__).parent) for package in (avssl, mast))
# Lines that ask for a value in the CPU's memory, whatever the device.
ON_THE_CPU = {
    "pretraining.py": "self._seed = int(torch.randint(2**62, ()).item())",  # of the CPU's generator
    "optimizer.py": "updates = int(self.n_averaged)",
    "spectrogram.py": "for clip, first, end in zip(x, start.tolist(), stop.tolist(), strict=True):",  # of a CPU alone
}


class Waits(TorchDispatchMode):
    """Where a GPU would be waited for: file and line of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.copies = Copies(self)

    def __enter__(self):
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def note(self) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename != __file__ and f.filename.startswith(OURS)]
        place, line = (Path(frames[-1].filename).name, str(frames[-1].line)) if frames else ("this test", "")
        if ON_THE_CPU.get(place) != line:
            self.found.append(f"{place}: {line}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        masks = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in WAITING or masks:
            self.note()
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Tells ``waits`` of copies to the CPU."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPYING or (func is torch.Tensor.to and "cpu" in args[1:]):
            self.waits.note()
        return func(*args, **(kwargs or {}))


def make_engine(objective: str) -> Engine:
    torch.manual_seed(0)
    pair = AudioVisualPair.build(
        audio="mast_pico",
        audio_options={"embed_dim": 16, "depths": [1, 1, 1, 1]},
        video="tiny",
        num_frames=4,
        crop_size=32,
        embedding_dim=8,
        projections={objective: {}},
    )
    shapes = Shapes(joint=8, audio=128, video=256, clips=4, audio_stride=(32, 32))
    terms = [(objective, create_objective(objective, shapes), 1.0)]
    augmentation = {
        "wave": WaveAugment(),
        "spectrogram": SpectrogramAugment(time_mask=0.1, freq_mask=0.1),
        "video": VideoAugment(32),
    }
    return Engine(
        Fabric(accelerator="cpu", devices=1),
        PretrainTask(pair, terms, **augmentation, diagnose_every=100),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, min_lr=1e-5, ema=0.99),
        log=LogConfig(every=100),
        steps=100,
        tracker=None,  # type: ignore[arg-type]  # steps that are not logged need no tracker
        store=None,  # type: ignore[arg-type]
        failures=FailureMonitor(),
        settings={},
    )


def make_batch() -> Batch:
    return Batch(
        audio=0.1 * torch.randn(4, 8000),
        video=torch.randint(0, 256, (4, 3, 4, 40, 40), dtype=torch.uint8),
        labels={},
        index=torch.arange(4),
        clip_ids=[str(k) for k in range(4)],
        start=torch.zeros(4, dtype=torch.float64),
    )


@pytest.fixture(params=[1, 2], ids=["alone", "with others"])
def processes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """How many processes the engine believes to be of; the group has this one alone."""
    if request.param > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        monkeypatch.setattr(Fabric, "world_size", property(lambda fabric: request.param))
    yield request.param
    if request.param > 1:
        torch.distributed.destroy_process_group()


def test_what_a_gpu_would_wait_for_is_seen() -> None:
    x = torch.tensor([1.0, 0.0])
    with Waits() as waits:
        for ask in (x.tolist, x.numpy, x.cpu, lambda: x.to("cpu"), lambda: bool(x[0]), lambda: x[x > 0], x.nonzero):
            before = len(waits.found)
            ask()
            assert len(waits.found) == before + 1, ask
        x.add(1).sum()
        assert len(waits.found) == 7


@pytest.mark.parametrize("objective", ["infonce", "siglip", "moco", "masked", "distill", "barlow"])
def test_a_step_that_is_not_logged_waits_once_for_what_all_agree_on(
    objective: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAST_NATIVE", "0")  # as on a GPU
    engine, batch = make_engine(objective), make_batch()
    engine.task.train()
    engine.step([batch])  # constants are made once
    with Waits() as waits:
        engine.step([batch])
        engine.step([batch, batch])  # two batches, one step
    waits.found = [
        place for place in waits.found if "start.tolist(), stop.tolist()" not in place
    ]  # a CPU's way to mask
    assert len(waits.found) == 2, waits.found
    assert all(place == "finite.py: broken, stopped = asked.flags.tolist()" for place in waits.found), waits.found


def test_the_average_counts_in_the_memory_of_the_cpu() -> None:
    average = ExponentialAverage(torch.nn.Linear(2, 2), 0.5).to("meta")
    assert average.module.weight.is_meta and average.n_averaged.device.type == "cpu"
