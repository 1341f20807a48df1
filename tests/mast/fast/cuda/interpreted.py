"""The kernels in Triton's interpreter, on a CPU: values and gradients are those of the written-out formulas.

``test_without_gpu.py`` runs this with TRITON_INTERPRET=1. Products in bfloat16 are wrong in the interpreter.
"""

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from kernel_errors import Grid, attention_errors, pooling3d_errors, pooling_errors
from torch import Tensor, nn

from mast import model
from mast.fast import cuda, widened
from mast.fast.blocks import FastAttention, FastBlock, swap

attention = importlib.import_module("mast.fast.cuda.attention")
pooling = importlib.import_module("mast.fast.cuda.pooling")
pooling3d = importlib.import_module("mast.fast.cuda.pooling3d")
norms = importlib.import_module("mast.fast.cuda.norms")
sums = importlib.import_module("mast.fast.cuda.sums")

TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def attend(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
    return attention.attention(q, k, v, *widened.position_scores(q, *tables))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", [((3, 7), (2, 5), 1, 24), ((2, 35), (2, 70), 1, 96)], ids=["small", "several tiles"])
def test_attention(sizes: tuple[Grid, Grid, int, int], dtype: torch.dtype) -> None:
    assert max(attention_errors(attend, sizes, dtype, "cpu", batch=1)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("major", "kibibytes", "small"), [(8, 163, True), (8, 99, True), (9, 227, False), (10, 227, False), (12, 99, True)]
)
def test_tiles_fit_the_device(major: int, kibibytes: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(major=major, shared_memory_per_block_optin=1024 * kibibytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    attention.needs_small_tiles.cache_clear()
    tiles = attention.SMALL_TILES if small else attention.TILES
    assert attention._tile("queries", torch.device("cuda"), 64) == tiles["queries"]
    attention.needs_small_tiles.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        ((2, 37), 1, 24, (1, 1), (2, 4)),  # more places than a program marches over, and an odd number
        ((5, 7), 2, 16, (2, 2), (1, 2)),
        ((3, 5), 1, 96, (1, 2), (1, 1)),
    ],
)
def test_pooling(sizes: tuple[Grid, int, int, Grid, Grid], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "PROGRAMS", 4)  # so that programs have several marches each
    assert max(pooling_errors(pooling.pool, sizes, dtype, "cpu")) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("sizes", "dtype"), [(((2, 3, 4), 1, 20, 1, 2), torch.float32), (((1, 5, 2), 2, 16, 2, 4), torch.float16)]
)
def test_pooling_of_a_video(sizes: tuple, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling3d, "PROGRAMS", 4)  # so that programs have several marches each
    assert max(pooling3d_errors(pooling3d.pool3d, sizes, dtype, "cpu")) < TOLERANCE[dtype]


def test_sums_over_programs_of_matrices_of_other_widths() -> None:
    shares = [torch.randn(rows, width) for rows, width in ((3, 70), (40, 5), (1, 130))]
    wanted = torch.cat([each.sum(0) for each in shares])
    torch.testing.assert_close(sums.fold(*shares), wanted)
    whole, half = sums.fold_twice(torch.float16, *shares[:2])
    torch.testing.assert_close(whole, wanted[:75])
    assert torch.equal(half, whole.half())


def test_the_compiler_knows_the_operators() -> None:
    """Shapes and gradients as tracing sees them, against those of a real call."""
    x = torch.randn(1, 2, 3, 48).requires_grad_()
    parameters = [torch.randn(shape).requires_grad_() for shape in [(16, 1, 3, 3), (16,), (16,)] * 3]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(pooling.pool, (x, parameters, 1, [1, 1], [1, 2], 1e-6), test_utils=tests)
    video = torch.randn(1, 3, 48).requires_grad_()
    parameters = [torch.randn(shape).requires_grad_() for shape in [(16, 1, 3, 3, 3), (16,), (16,)] * 3]
    torch.library.opcheck(pooling3d.pool3d, (video, parameters, 1, [1, 1, 2], 1, 2, 1e-6), test_utils=tests)


def test_attention_by_kernels_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wiring within a block: what the kernels are given, forward and backward."""
    monkeypatch.setattr(cuda, "attention", attention.attention, raising=False)
    monkeypatch.setattr(cuda, "pool", pooling.pool, raising=False)
    monkeypatch.setattr(cuda, "usable", lambda x, dim: True)
    monkeypatch.setattr(FastAttention, "_pooled", FastAttention._pooled_by_kernels)
    torch.manual_seed(0)
    plain = model.PoolingAttention(32, 32, 2, (4, 6), (1, 2), (2, 1))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    fast = copy.deepcopy(plain)
    fast.__class__ = FastAttention
    x = torch.randn(2, 4, 6, 32)
    found = []
    for each in (plain, fast):
        given = x.clone().requires_grad_()
        out = each(given)
        out.square().sum().backward()
        found.append([out, given.grad, *(parameter.grad for parameter in each.parameters())])
    largest = max(float(value.detach().abs().max()) for value in found[0])
    for value, wanted in zip(*found[::-1], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize(
    "geometry", [(16, 16, 1, (1, 1), (1, 2), 0.0), (16, 32, 2, (2, 1), (1, 1), 0.5)], ids=["same", "pooled"]
)
def test_a_block_by_branches_is_the_plain_one(geometry: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of all parameters, also with stochastic depth; sums are those of several programs."""
    monkeypatch.setattr(FastBlock, "_by_branches", lambda self, x: True)
    for name, value in {"TILE": 128, "PROGRAMS": 2, "GELU_COLUMNS": 32, "GELU_PROGRAMS": 2}.items():
        monkeypatch.setattr(norms, name, value)
    *sizes, q_stride, kv_stride, rate = geometry
    torch.manual_seed(0)
    plain = model.Block(*sizes, (3, 5), q_stride, kv_stride, 2.0, rate)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    fast = copy.deepcopy(plain)
    swap(fast, fast=True, kernels=("cuda",))
    x = torch.randn(3, 3, 5, sizes[0])
    found = []
    for each in (plain, fast):
        torch.manual_seed(0)
        given = x.clone().requires_grad_()
        out = each(given)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out, given.grad, *(parameter.grad for parameter in each.parameters())])
    largest = max(float(value.detach().abs().max()) for value in found[0])
    for value, wanted in zip(*found[::-1], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5 * largest)
