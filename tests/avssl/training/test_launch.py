"""What a user is told before a run starts, and what the run does with memory."""

import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_tools import ForkedTools

import mast
from avssl.commands import finetune, pretrain
from avssl.config import FinetuneConfig, PretrainConfig, RuntimeConfig
from avssl.errors import LostProcessError
from avssl.training import launch


@pytest.mark.parametrize(
    ("precision", "able", "told"), [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)]
)
def test_bfloat16_on_a_processor_without_it_is_warned_of(
    precision: str, able: bool, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "has_bfloat16", lambda: able)
    with caplog.at_level(logging.WARNING, logger="avssl"):
        fabric = launch.launch_single(RuntimeConfig(accelerator="cpu", precision=precision), 0, 0)
    assert fabric.device.type == "cpu"
    assert ("more slowly than float32; use 32-true" in caplog.text) == told


@pytest.mark.parametrize(
    ("module", "run", "config"),
    [(pretrain, pretrain.pretrain, PretrainConfig), (finetune, finetune.finetune, FinetuneConfig)],
)
def test_a_process_lost_outside_of_the_loop_is_told_as_that(module, run, config, tmp_path, monkeypatch) -> None:
    def gone(*_, **__):
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")

    monkeypatch.setattr(module, "Run", gone)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(LostProcessError, match="process 0 of 1 lost another one"):
            run(config(checkpoint="none", output=tmp_path) if module is finetune else config(output=tmp_path))
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(RuntimeError, match="Connection closed"):  # of one process it is a defect
        run(config(checkpoint="none", output=tmp_path) if module is finetune else config(output=tmp_path))


FAULTS = """
import resource
import torch
from avssl.config import RuntimeConfig
from avssl.training.launch import launch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
launch(RuntimeConfig(accelerator="cpu"), 0)
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about the memory of the GNU C library")
@pytest.mark.parametrize(
    ("chosen", "kept"), [({}, True), ({"AVSSL_KEEP_MEMORY": "0"}, False), ({"MALLOC_MMAP_MAX_": "65536"}, False)]
)
def test_a_run_keeps_what_tensors_free_unless_the_user_chose(
    chosen: dict[str, str], kept: bool, forked_tools: ForkedTools, tmp_path: Path
) -> None:
    """Torch reads its own variable when it first allocates, and the run the others when it is launched."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "AVSSL_KEEP"))}
    environment = mine | {"THP_MEM_ALLOC_ENABLE": "0"} | chosen
    (tmp_path / "faults.py").write_text(FAULTS)
    done = forked_tools.run(tmp_path / "faults.py", [], environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    pages = 3 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert before > pages / 2, "each tensor is mapped anew"
    assert after < pages / 10 if kept else after > pages / 2


@pytest.fixture
def chosen_backend() -> Iterator[None]:
    yield
    mast.set_backend("auto")


@pytest.mark.usefixtures("chosen_backend")
def test_backend_holds_for_every_model_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.launch(RuntimeConfig(accelerator="cpu", backend="reference"), 0)
    assert set(mast.create_model("mast_nano").backends().values()) == {"reference"}
    launch.launch_single(RuntimeConfig(accelerator="cpu"), 0, 0)
    assert "reference" not in set(mast.create_model("mast_nano").backends().values())
    monkeypatch.setenv("MAST_NATIVE", "0")
    with pytest.raises(ValueError, match=r"runtime\.backend=cpu: no kernels can be built here"):
        launch.launch(RuntimeConfig(accelerator="cpu", backend="cpu"), 0)
