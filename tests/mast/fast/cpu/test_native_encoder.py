"""The compiled functions between MAST's products equal torch's operators in float64, forward and backward."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mast.fast.cpu import encoder

EPS = 1e-6


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    if not encoder.fits(0):
        pytest.skip("kernels cannot be built here")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["wide", "narrow"])
def lanes(request: pytest.FixtureRequest) -> int:
    """Channels of a vector; an odd number of narrow ones are what only the narrow functions take."""
    kernels = encoder.library(narrow=request.param)
    assert kernels is not None
    return int(kernels.mast_lanes())


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def doubled(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (7, 3), (130, 6), (5, 47)])
def test_layer_norm(rows: int, vectors: int, lanes: int) -> None:
    dim = vectors * lanes
    x, weight, bias, grad = 3 + random(rows, dim), random(dim), random(dim), random(rows, dim)
    tensors = doubled(x, weight, bias)
    expected = F.layer_norm(tensors[0], (dim,), *tensors[1:], EPS)
    close(encoder.layer_norm(x, weight, bias, EPS), expected)
    for found, wanted in zip(
        encoder.layer_norm_backward_(grad.clone(), x, weight, EPS),
        torch.autograd.grad(expected, tensors, grad.double()),
        strict=True,
    ):
        close(found, wanted)


def test_residual_with_and_without_shares(lanes: int) -> None:
    x, branch, bias, more = random(3, 5, 3 * lanes), random(3, 5, 3 * lanes), random(3 * lanes), random(3, 5, 3 * lanes)
    shares = torch.tensor([0.0, 1.5, 1.0]).view(3, 1, 1)
    close(encoder.add_residual_(branch.clone(), x, bias, None), x.double() + branch.double() + bias.double())
    expected = x.double() + shares.double() * (branch.double() + bias.double())
    close(encoder.add_residual_(branch.clone(), x, bias, shares), expected)
    grad = branch.clone()
    alone = encoder.layer_norm_backward_(grad.clone(), x, bias, EPS)
    both = encoder.layer_norm_backward_(grad.clone(), x, bias, EPS, more)
    torch.testing.assert_close(both[0], alone[0] + more)
    assert torch.equal(both[1], alone[1]) and torch.equal(both[2], alone[2])


def test_gelu(lanes: int) -> None:
    dim = 3 * lanes
    x = torch.cat([torch.linspace(-120, 120, 40 * dim), 2 * random(10 * dim)]).view(-1, dim)
    bias, grad = random(dim), random(*x.shape)
    tensors = doubled(x, bias)
    expected = F.gelu(tensors[0] + tensors[1])
    torch.testing.assert_close(encoder.gelu(x, bias).double(), expected, atol=1e-6, rtol=1e-6)
    replaced = grad.clone()
    activated, grad_bias = encoder.gelu_backward_(replaced, x, bias)
    wanted = torch.autograd.grad(expected, tensors, grad.double())
    assert torch.equal(activated, encoder.gelu(x, bias))
    torch.testing.assert_close(replaced.double(), wanted[0], atol=2e-6, rtol=1e-6)
    close(grad_bias, wanted[1])


@pytest.mark.parametrize("step", [(1, 1), (1, 2), (2, 2), (2, 4)])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (5, 8), (6, 7)])
def test_pooling(step: tuple[int, int], rows: int, columns: int, lanes: int) -> None:
    batch, heads, dim = 2, 3, 3 * lanes
    wide = random(batch, rows, columns, 2 * heads * dim)  # what is pooled lies among other channels
    x, scale, bias, weight = wide.chunk(2, dim=-1)[1], random(dim), random(dim + 1)[1:], random(dim, 1, 3, 3)
    pooling = encoder.Pooling(weight.flatten(1).t().contiguous(), scale, bias.contiguous(), step, EPS)

    tensors = doubled(x, weight, scale, bias)
    image = tensors[0].permute(0, 3, 1, 2)
    convolved = F.conv2d(image, tensors[1].repeat(heads, 1, 1, 1), stride=step, padding=1, groups=heads * dim)
    by_head = convolved.permute(0, 2, 3, 1).unflatten(3, (heads, dim)).permute(0, 3, 1, 2, 4)
    expected = F.layer_norm(by_head, (dim,), tensors[2], tensors[3], EPS)
    close(pooling.forward(x, heads), expected)

    first, second = random(*expected.shape), random(*expected.permute(0, 2, 3, 1, 4).shape).permute(0, 3, 1, 2, 4)
    grad_wide = torch.full_like(wide, 5.0)
    taps, *affine = pooling.backward(x, heads, [first, second], grad_wide.chunk(2, dim=-1)[1])
    wanted = torch.autograd.grad(expected, tensors, (first + second).double())
    found = (grad_wide.chunk(2, dim=-1)[1], taps.t().unflatten(1, (1, 3, 3)), *affine)
    for one, other in zip(found, wanted, strict=True):
        close(one, other)
    assert (grad_wide.chunk(2, dim=-1)[0] == 5).all(), "other channels are left alone"


@pytest.mark.parametrize("keys", [(1, 1), (2, 5), (3, 16), (2, 37)])
def test_softmax(keys: tuple[int, int]) -> None:
    heads, grid, part = 3, (2, 5), slice(3, 9)  # queries from the middle of a row to the middle of another
    products = 4 * random(heads, grid[0] * grid[1], keys[0] * keys[1])
    by_row, by_column = random(heads, *grid, keys[0]), random(grid[1], heads, grid[0], keys[1]).permute(1, 2, 0, 3)
    tensors = doubled(products, by_row, by_column)
    positions = tensors[1].flatten(1, 2)[..., None] + tensors[2].flatten(1, 2)[:, :, None]
    expected = (0.3 * (tensors[0] + positions.flatten(2))).softmax(dim=-1)[:, part]

    weights = products[:, part].contiguous()
    encoder.softmax_(weights, by_row, by_column, part.start, 0.3)
    torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=1e-5)

    grad = random(*weights.shape)
    wanted = torch.autograd.grad(expected, tensors, grad.double())
    grad_row, grad_column = torch.zeros_like(by_row), torch.zeros_like(by_column)
    encoder.softmax_backward_(weights, grad, grad_row, grad_column, part.start, 0.3)
    for found, other in zip((grad, grad_row, grad_column), (wanted[0][:, part], *wanted[1:]), strict=True):
        torch.testing.assert_close(found.double(), other, atol=1e-6, rtol=1e-4)


def test_what_is_not_finite_stays_so(lanes: int) -> None:
    dim = lanes
    bad = random(2, dim)
    bad[1, 3] = torch.nan
    gelu = encoder.gelu(bad, torch.zeros(dim))
    norm = encoder.layer_norm(bad, torch.ones(dim), torch.zeros(dim), EPS)
    assert gelu[1, 3].isnan() and norm[1].isnan().all() and gelu[0].isfinite().all() and norm[0].isfinite().all()
    scores = random(1, 2, dim + 1)
    scores[0, 1, dim] = torch.nan
    encoder.softmax_(scores, torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, dim + 1), 0, 1.0)
    assert scores[0, 1].isnan().all() and scores[0, 0].isfinite().all()


def test_bfloat16_rounds_as_torch_does(lanes: int) -> None:
    x, bias = random(40, 3 * lanes).bfloat16(), random(3 * lanes)
    bias[::7] = 2**-8  # exactly between two numbers, where x is 1
    x[::2], x[1, 0], x[3, 1], bias[2] = 1.0, torch.nan, torch.inf, 3.4e38
    found = encoder.add_residual_(torch.zeros_like(x), x, bias, None)
    expected = (x.float() + bias).bfloat16()
    assert torch.equal(found.isnan(), expected.isnan()) and found[1, 0].isnan()
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
