"""FSDP2 on two processes gives every objective the gradients and the next weights of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from objective_cases import CASES
from objective_steps import start_processes
from test_all_objectives import BATCHES, make_task, same, share_of, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from avssl.models.blocks import shard


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    results: dict[str, Any] = {}
    for name in CASES:
        try:
            task = shard(make_task(name), mesh)
            steps = train(task, [share_of(batch, rank, 2) for batch in BATCHES[:2]])
            gradients = [{key: whole(value) for key, value in step.items()} for step in steps]
            results[name] = (gradients, {key: whole(value) for key, value in task.state_dict().items()})
        except Exception as error:  # told by the test of this objective
            results[name] = repr(error)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    start_processes(sharded, (str(folder),), 2)
    return torch.load(Path(folder) / "results.pt")


@pytest.mark.parametrize("name", CASES)
def test_sharded_gradients_equal_one_process(name: str, results: dict[str, Any]) -> None:
    assert not isinstance(results[name], str), results[name]
    gradients, state = results[name]
    task = make_task(name)
    for number, mine in enumerate(train(task, BATCHES[:2])):
        assert mine.keys() == gradients[number].keys()
        for key in mine:
            same(gradients[number][key], mine[key], name)
    for key, value in task.state_dict().items():
        same(state[key], value, name)
