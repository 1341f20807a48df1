"""The repeated blocks of the encoders: what activation checkpointing and sharding wrap one by one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.video.mvit import MultiscaleBlock
from torchvision.models.video.resnet import BasicBlock
from torchvision.models.video.s3d import SepInceptionBlock3D
from torchvision.models.video.swin_transformer import PatchMerging, SwinTransformerBlock

from avssl.models.backbones import SmallBlock
from avssl.models.fusion import FusionLayer
from mast import SpectrogramModel

# Those of video encoders and fusion; an audio encoder names its own (``SpectrogramModel.blocks``).
BLOCKS = (
    MultiscaleBlock,
    SwinTransformerBlock,
    PatchMerging,
    BasicBlock,
    SepInceptionBlock3D,
    SmallBlock,
    FusionLayer,
)


def encoder_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks within ``module``."""
    audio = (child for child in module.modules() if isinstance(child, SpectrogramModel))
    named = {
        id(getattr(block, "_checkpoint_wrapped_module", block))
        for model in audio
        for block in getattr(model, "blocks", ())
    }
    return (child for child in module.modules() if isinstance(child, BLOCKS) or id(child) in named)


def checkpoint_activations(module: nn.Module) -> None:
    """Lets every block keep its input only and compute the rest again in the backward pass (Chen et al. 2016).

    Names of parameters in ``state_dict`` stay as they are.

    Raises:
        ValueError: when there is no block in it that is known.
    """
    blocks = {id(block) for block in encoder_blocks(module)}
    if not blocks:
        raise ValueError(f"runtime.checkpoint_activations: no block of {type(module).__name__} is known")

    def wrap(block: nn.Module) -> nn.Module:
        return checkpoint_wrapper(block, context_fn=lambda: (nullcontext(), batch_norms_still(block)))

    apply_activation_checkpointing(module, checkpoint_wrapper_fn=wrap, check_fn=lambda child: id(child) in blocks)


@contextmanager
def batch_norms_still(module: nn.Module) -> Iterator[None]:
    """Within, running statistics do not move: computing something again must not count its batch twice."""
    norms: list[Any] = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(norms, before, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards parameters, gradients and optimizer state over the mesh, block by block (FSDP2)."""
    data_parallel = mesh["data_parallel"]
    for parameter in module.parameters():  # FSDP knows the standard layout only
        parameter.data = parameter.data.contiguous()
    for block in encoder_blocks(module):
        fully_shard(block, mesh=data_parallel)
    fully_shard(module, mesh=data_parallel)
    return module
