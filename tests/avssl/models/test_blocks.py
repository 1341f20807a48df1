"""Activation checkpointing, compilation and graphs change no value, gradient, name or statistic."""

import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import mast
from avssl.config import RuntimeConfig
from avssl.models.blocks import checkpoint_activations, encoder_blocks
from avssl.models.video import create_video_encoder
from avssl.training.launch import prepare_encoders


def encoders() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return {
        "mast": (
            mast.create_model("mast_pico", embed_dim=8, depths=[1, 1, 1, 1], drop_path=0.3),
            torch.randn(3, 1, 64, 40),
        ),
        "ast": (
            mast.create_model("ast_base", embed_dim=24, depth=2, heads=2, drop_path=0.3),
            torch.randn(3, 1, 32, 40),
        ),
        "tiny": (create_video_encoder("tiny", num_frames=4, frame_size=32), torch.rand(3, 3, 4, 32, 32)),
        "r2plus1d_18": (create_video_encoder("r2plus1d_18", num_frames=4, frame_size=32), torch.rand(3, 3, 4, 32, 32)),
        "s3d": (create_video_encoder("s3d", num_frames=16, frame_size=32), torch.rand(2, 3, 16, 32, 32)),
        "swin3d_t": (create_video_encoder("swin3d_t", num_frames=4, frame_size=32), torch.rand(1, 3, 4, 32, 32)),
    }


@pytest.mark.parametrize("name", ["mast", "ast", "tiny", "r2plus1d_18", "s3d", "swin3d_t"])
def test_checkpointed_activations_change_nothing(name: str) -> None:
    model, x = encoders()[name]
    saving = copy.deepcopy(model)
    checkpoint_activations(saving)
    assert list(saving.state_dict()) == list(model.state_dict())
    assert sum(1 for _ in encoder_blocks(saving)) == sum(1 for _ in encoder_blocks(model)) >= 2
    kept = []
    for module in (model, saving):
        torch.manual_seed(1)  # stochastic depth draws the same, also when a block runs again
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=saved: into.append(t.numel()) or t, lambda t: t):
            out = module(x)
        out.square().mean().backward()
        kept.append(sum(saved))
    for (key, one), other in zip(model.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=lambda told, key=key: f"{key}: {told}")
    for (key, one), other in zip(model.state_dict().items(), saving.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, msg=lambda told, key=key: f"{key}: {told}")
    assert kept[1] < 0.8 * kept[0]


def test_an_encoder_without_known_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no block of Linear is known"):
        checkpoint_activations(nn.Linear(2, 2))


def test_compiled_blocks_compute_the_same() -> None:
    # Two equal blocks, which are compiled once.
    strides = {"q_strides": [[1, 1]], "kv_strides": [[2, 4]]}
    model = mast.create_model("mast_pico", embed_dim=8, depths=[2], drop_path=0.0, **strides)
    compiled = copy.deepcopy(model)
    prepare_encoders(RuntimeConfig(compile=True), Fabric(accelerator="cpu", devices=1), compiled)
    assert list(compiled.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 1, 32, 40)
    for module in (model, compiled):
        module.forward_grid(x).square().mean().backward()  # the way in that pretraining takes
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_cuda_graphs_are_for_gpus() -> None:
    model = mast.create_model("mast_pico", embed_dim=8, depths=[1], q_strides=[[1, 1]], kv_strides=[[2, 4]])
    names = set(vars(model))
    prepare_encoders(RuntimeConfig(graphs="auto"), Fabric(accelerator="cpu", devices=1), model)
    assert set(vars(model)) == names


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["operators", "compiled"])
@pytest.mark.parametrize("name", ["mast", "ast", "tiny", "r2plus1d_18", "swin3d_t"])
def test_cuda_graphs_change_nothing(name: str, compiled: bool) -> None:
    model, x = encoders()[name]
    model, x = model.cuda().train(), x.cuda()
    graphed = copy.deepcopy(model)
    runtime = RuntimeConfig(graphs="auto", compile=compiled)
    prepare_encoders(runtime, Fabric(accelerator="cuda", devices=1), graphed)
    for step in range(3):
        for module in (model, graphed):
            torch.manual_seed(step)
            module.zero_grad()
            module(x).square().mean().backward()
        if not compiled or name == "tiny":  # compiled code draws other random numbers
            for (key, one), other in zip(model.named_parameters(), graphed.parameters(), strict=True):
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    for one, other in zip(model.buffers(), graphed.buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert next(value for key, value in vars(graphed).items() if key.startswith("forward")).passes is not None


@pytest.mark.gpu
def test_kernels_are_compared_before_compiled_code_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from mast.fast import comparison

    compared = []
    monkeypatch.setattr(comparison, "compare", lambda block, way: compared.append(way) or "")
    comparison.known_differences.clear()
    model = mast.create_model("mast_pico", depths=[1], q_strides=[[1, 1]], kv_strides=[[2, 4]])
    prepare_encoders(RuntimeConfig(compile=True), Fabric(accelerator="cuda", devices=1), model)
    assert "cuda" in compared
