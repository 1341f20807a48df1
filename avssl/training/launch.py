"""Devices, precision, processes and memory of a run, and signals that stop it."""

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch._dynamo
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed, nn

import mast
from avssl.data.media.pool import available_cores
from avssl.errors import LostProcessError
from avssl.models.blocks import checkpoint_activations, encoder_blocks, shard
from avssl.training.settings import RuntimeConfig
from mast.fast.cuda.graphs import graph_training

logger = logging.getLogger(__name__)

# What gloo, NCCL and their store say when the other end is gone, in lower case.
_LOST_PROCESS = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out", "nccl", "gloo")


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation raised ``error``, as another process of the run is gone."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    told = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in told for sign in _LOST_PROCESS)


# Of mallopt, as <malloc.h> has them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@contextmanager
def report_lost_processes() -> Iterator[None]:
    """Raises LostProcessError where a collective operation inside fails, as another process of the run is gone.

    The training loop does so itself, and names the step.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise LostProcessError(
            f"process {distributed.get_rank()} of {distributed.get_world_size()} lost another one: it was killed, ran "
            "out of memory or failed (see its own last lines). The same command continues from the last checkpoint"
        ) from error


def launch(runtime: RuntimeConfig, seed: int) -> Fabric:
    """Starts Fabric on the devices of ``runtime`` and seeds every process alike.

    Raises:
        ValueError: when this machine has no such device, or not the kernels of ``runtime.backend``.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision(runtime.matmul)
    try:  # for every model that this process makes from here on: trained ones, evaluated ones, and their copies
        mast.set_backend(runtime.backend)
    except RuntimeError as error:
        raise ValueError(f"runtime.{error}") from error
    try:
        fabric = Fabric(
            accelerator=runtime.accelerator,
            devices=runtime.devices,
            num_nodes=runtime.num_nodes,
            strategy=_strategy(runtime),
            precision=runtime.precision,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"runtime: {error}") from error
    if fabric.device.type == "cpu":
        keep_freed_memory()
    if runtime.precision != "32-true" and fabric.device.type == "cpu" and not has_bfloat16():
        logger.warning(
            "runtime.precision: this processor computes bfloat16 (%s) many times more slowly than float32; use 32-true",
            runtime.precision,
        )
    if fabric.world_size > 1 or "LOCAL_RANK" in os.environ:
        _join_torchrun(fabric)
        fabric.launch()
    seed_everything(seed, verbose=False)
    return fabric


def check_alike(fabric: Fabric, told: Mapping[str, Any]) -> None:
    """Refuses to go on where the processes of a run differ in what is to be the same in all; each calls it.

    Args:
        fabric: Launched Fabric.
        told: What of it is which in this process, as plain values.

    Raises:
        ValueError: naming a process that differs from process 0, its host, and the first value that does. In all of
            them, so that none waits for another.
    """
    if fabric.world_size == 1:
        return
    everywhere: list[Any] = [None] * fabric.world_size
    distributed.all_gather_object(everywhere, (socket.gethostname(), dict(told)))
    first = everywhere[0][1]
    for rank, (host, theirs) in enumerate(everywhere):
        for what in first.keys() | theirs.keys():
            if first.get(what) != theirs.get(what):
                raise ValueError(
                    f"runtime: process {rank} of {fabric.world_size}, on {host}, has {what} {theirs.get(what)!r}, not "
                    f"{first.get(what)!r} as process 0, on {everywhere[0][0]}: give all the same files and settings"
                )


def launch_single(runtime: RuntimeConfig, seed: int, workers: int) -> Fabric:
    """The same for work that is no training: one process on one device.

    Where ``runtime`` says nothing of threads, ``workers`` that decode beside it have a core each: a thread too many
    waits for the others at every operator.

    Raises:
        ValueError: also when ``runtime`` has a setting of training.
    """
    usual = RuntimeConfig()
    for name in ("devices", "num_nodes", "strategy", "compile", "graphs", "checkpoint_activations"):
        if getattr(runtime, name) != getattr(usual, name):
            raise ValueError(f"runtime.{name}: is for training; this is one process on one device: leave it out")
    if not runtime.threads:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cores() - workers)))
    return launch(runtime, seed)


def keep_freed_memory() -> None:
    """Lets this process keep what tensors free, for the next ones, unless ``AVSSL_KEEP_MEMORY`` is 0 or the user has
    chosen by a ``MALLOC_`` variable.

    glibc by itself maps each tensor of more than 32 MiB anew, and the kernel clears its pages one by one: a seventh of
    a training step of MAST-B with 16 clips. The price is a tenth more memory, and that none goes back to the system.
    """
    chosen = os.environ.get("AVSSL_KEEP_MEMORY") == "0" or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in other C libraries
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def has_bfloat16() -> bool:
    """Whether torch's matrix products in bfloat16 are the CPU's own: else it multiplies one number after the other."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _strategy(runtime: RuntimeConfig) -> Strategy | str:
    several = runtime.devices not in (1, "1") or runtime.num_nodes > 1
    if runtime.strategy == "fsdp":
        return ModelParallelStrategy(
            parallelize_fn=shard,
            data_parallel_size=_device_count(runtime) * runtime.num_nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, which any number of processes can resume from
        )
    if runtime.strategy == "ddp" or several:
        # Banks and queues are equal on all processes already: sending them before each step would cost far more than
        # the gradients. Some objectives leave a projection or a whole encoder without a gradient; and while DDP looks
        # for those, it does not reorder its buckets after the first step, by which a resumed run would round otherwise.
        return DDPStrategy(forward_sync_buffers=False, find_unused_parameters=True)
    return "auto"


def _device_count(runtime: RuntimeConfig) -> int:
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if runtime.devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() or 1
    return int(runtime.devices)


def _join_torchrun(fabric: Fabric) -> None:
    """Joins the processes of torchrun under a prefix of the attempt.

    torch itself reads the addresses of the attempt before (seen in 2.13, with gloo): after a restart no process finds
    the others.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ or distributed.is_initialized():
        return  # not torchrun, or a further run of the same processes
    attempt, rank, world = (int(os.environ[key]) for key in ("TORCHELASTIC_RESTART_COUNT", "RANK", "WORLD_SIZE"))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent_hosts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = distributed.TCPStore(address, port, world, is_master=rank == 0 and not agent_hosts)
    distributed.init_process_group(
        "nccl" if fabric.device.type == "cuda" else "gloo",
        store=distributed.PrefixStore(f"avssl/attempt_{attempt}", store),
        rank=rank,
        world_size=world,
    )


def prepare_encoders(runtime: RuntimeConfig, fabric: Fabric, *encoders: nn.Module) -> None:
    """Activation checkpointing, compilation and CUDA graphs of ``encoders``, in place, as ``runtime`` asks for them."""
    on_gpu = fabric.device.type == "cuda"
    for encoder in encoders:
        if runtime.compile and on_gpu:  # compiled code compares no kernels with the plain code: it is done before
            here = next(encoder.parameters()).device
            mast.accelerate(encoder.to(fabric.device), runtime.backend)
            encoder.to(here)
        if runtime.checkpoint_activations:
            checkpoint_activations(encoder)
        if runtime.compile:
            # Block by block: equal ones share their code. Sizes differ between stages, and each deserves its own code.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            for block in encoder_blocks(encoder):
                block.compile(dynamic=False)
        if runtime.graphs == "auto" and on_gpu and fabric.world_size == 1:
            graph_training(encoder)
    if runtime.graphs == "auto" and on_gpu and fabric.world_size > 1:
        logger.info("runtime.graphs: several processes train without CUDA graphs")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills; a second signal acts as it did before."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
