"""What lies between the matrix products of MAST's blocks on a CPU: the functions of ``encoder.cpp`` on tensors.

All tensors are on the CPU: those of the blocks float32 or all bfloat16, parameters and their gradients float32.
"Contiguous" ones must be.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mast.fast.cpu.build import load

_FLAGS = ("-ffp-contract=fast", "-fno-trapping-math", "-mprefer-vector-width=512")
_lanes: dict[bool, int] = {}  # channels of a vector, by whether they are narrow
_DEFINES: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DMAST_BF16",)}
_POINTER, _SIZE, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SOFTMAX = [_POINTER] * 4 + [_SIZE] * 6 + [_FLOAT, _INT]
_SIGNATURES = {
    "mast_layer_norm": [_POINTER] * 4 + [_SIZE] * 2 + [_FLOAT, _INT],
    "mast_layer_norm_backward": [_POINTER] * 6 + [_SIZE] * 2 + [_FLOAT, _INT],
    "mast_add_residual": [_POINTER] * 4 + [_SIZE] * 3 + [_INT],
    "mast_gelu": [_POINTER] * 3 + [_SIZE] * 2 + [_INT],
    "mast_gelu_backward": [_POINTER] * 5 + [_SIZE] * 2 + [_INT],
    "mast_pool": [_POINTER, _SIZE] + [_POINTER] * 4 + [_SIZE] * 7 + [_FLOAT, _INT],
    "mast_pool_backward": [_POINTER, _SIZE] + [_POINTER] * 2 + [_SIZE] + [_POINTER] * 4 + [_SIZE] * 7 + [_FLOAT, _INT],
    "mast_softmax": [_POINTER, *_SOFTMAX],
    "mast_softmax_backward": [_POINTER] * 2 + _SOFTMAX,
}


def library(dtype: torch.dtype = torch.float32, narrow: bool = False) -> ctypes.CDLL | None:
    """The compiled functions for tensors of ``dtype``, or None where there are none.

    Args:
        narrow: with vectors of half the width.
    """
    if dtype not in _DEFINES:
        return None
    kernels = load("encoder", *_FLAGS, *_DEFINES[dtype], *(["-DMAST_NARROW"] if narrow else []))
    if kernels is not None and kernels.mast_softmax_backward.argtypes is None:
        kernels.mast_lanes.restype = _SIZE
        _lanes[narrow] = kernels.mast_lanes()
        for name, arguments in _SIGNATURES.items():
            function = getattr(kernels, name)
            function.restype, function.argtypes = None, arguments
    return kernels


def fits(*widths: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether there are functions for these numbers of channels: whole vectors, wide or narrow."""
    return _library_for(dtype, *widths) is not None


def _library_for(dtype: torch.dtype, *widths: int) -> ctypes.CDLL | None:
    for narrow in (False, True):
        kernels = library(dtype, narrow)
        if kernels is not None and not any(width % _lanes[narrow] for width in widths):
            return kernels
    return None


def _call(name: str, width: int, x: Tensor, *arguments: Tensor | ctypes.Array | int | float | None) -> None:
    """Calls a function for ``width`` channels and the type of ``x``."""
    kernels = _library_for(x.dtype, width)
    assert kernels is not None, "callers ask fits() first"
    pointers = [value.data_ptr() if isinstance(value, Tensor) else value for value in (x, *arguments)]
    getattr(kernels, name)(*pointers, torch.get_num_threads())


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of ``x``, contiguous (..., dim)."""
    y = torch.empty_like(x)
    _call("mast_layer_norm", x.shape[-1], x, weight, bias, y, x.numel() // x.shape[-1], x.shape[-1], eps)
    return y


def layer_norm_backward_(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, more: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, plus ``more``, which replace ``grad``, of the weight and of the bias; all contiguous."""
    affine = weight.new_empty(2, x.shape[-1])
    dim = x.shape[-1]
    _call("mast_layer_norm_backward", dim, x, weight, grad, more, grad, affine, x.numel() // dim, dim, eps)
    return grad, affine[0], affine[1]


def add_residual_(branch: Tensor, x: Tensor, bias: Tensor, shares: Tensor | None) -> Tensor:
    """``branch`` becomes ``x + shares * (branch + bias)``; (B, ..., dim) contiguous, shares (B, 1, ...)."""
    dim, samples = x.shape[-1], x.shape[0]
    rows = x.numel() // max(1, samples * dim)
    factors = None if shares is None else shares.float()
    _call("mast_add_residual", dim, branch, x, bias, factors, samples, rows, dim)
    return branch


def gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias), ``x`` contiguous (..., dim)."""
    y = torch.empty_like(x)
    _call("mast_gelu", x.shape[-1], x, bias, y, x.numel() // x.shape[-1], x.shape[-1])
    return y


def gelu_backward_(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``grad``, of GELU(x + bias) with x (N, dim), becomes that of x.

    Returns:
        GELU(x + bias), and the gradient of the bias.
    """
    activated, total = torch.empty_like(x), torch.empty_like(bias)
    _call("mast_gelu_backward", x.shape[1], x, bias, grad, activated, total, x.shape[0], x.shape[1])
    return activated, total


class Pooling:
    """3x3 depthwise convolution and LayerNorm of each head's channels, as ``mast.model.DepthwisePool``.

    Args:
        taps: (9, dim) contiguous, of the convolution.
        scale, bias: (dim,), of the norm.
        step: stride in rows and columns.
        eps: of the norm.
    """

    def __init__(self, taps: Tensor, scale: Tensor, bias: Tensor, step: tuple[int, int], eps: float) -> None:
        self.taps, self.scale, self.bias, self.step, self.eps = taps, scale, bias, step, eps

    def forward(self, x: Tensor, heads: int) -> Tensor:
        """(B, rows, columns, heads * dim), positions contiguous -> (B, heads, rows', columns', dim)."""
        batch, rows, columns, dim = x.shape[0], x.shape[1], x.shape[2], len(self.scale)
        size = (-(-length // step) for length, step in zip((rows, columns), self.step, strict=True))
        y = x.new_empty(batch, heads, *size, dim)
        shape = (batch, heads, rows, columns, *self.step, dim)
        _call("mast_pool", dim, x, x.stride(2), self.taps, self.scale, self.bias, y, *shape, self.eps)
        return y

    def backward(self, x: Tensor, heads: int, grads: Sequence[Tensor], grad_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Writes the gradient of ``x`` to ``grad_x``, of the same strides.

        Args:
            grads: their sum is the gradient of the result; (B, heads, rows', columns', dim), channels contiguous.

        Returns:
            Gradients of taps, scale and bias.
        """
        affine = self.scale.new_empty(11, len(self.scale))
        pointers = (_POINTER * len(grads))(*(grad.data_ptr() for grad in grads))
        strides = (_SIZE * (4 * len(grads)))(*(step for grad in grads for step in grad.stride()[:4]))
        shape = (x.shape[0], heads, x.shape[1], x.shape[2], *self.step, len(self.scale))
        sources = (x, x.stride(2), self.taps, self.scale, len(grads), pointers, strides)
        _call("mast_pool_backward", len(self.scale), *sources, grad_x, affine, *shape, self.eps)
        return affine[:9], affine[9], affine[10]


def softmax_(scores: Tensor, by_row: Tensor, by_column: Tensor, first: int, factor: float) -> None:
    """Products of queries and keys become attention weights, softmax(factor * (score + position scores)).

    Args:
        scores: (heads, queries, keys) contiguous; some queries of each head, counted from ``first``.
        by_row: (heads, query rows, query columns, key rows), the last contiguous.
        by_column: (heads, query rows, query columns, key columns), likewise.
    """
    positions = (by_row, _strides(by_row), by_column, _strides(by_column))
    _call("mast_softmax", 0, scores, *positions, *_softmax_shape(scores, by_row, by_column, first), factor)


def softmax_backward_(
    weights: Tensor, grad: Tensor, grad_by_row: Tensor, grad_by_column: Tensor, first: int, factor: float
) -> None:
    """``grad``, of the weights, becomes that of the products; those of the position scores are written.

    The arguments are laid out as those of :func:`softmax_`.
    """
    positions = (grad_by_row, _strides(grad_by_row), grad_by_column, _strides(grad_by_column))
    shape = _softmax_shape(weights, grad_by_row, grad_by_column, first)
    _call("mast_softmax_backward", 0, weights, grad, *positions, *shape, factor)


def _strides(positions: Tensor) -> ctypes.Array:
    return (_SIZE * 3)(*positions.stride()[:3])


def _softmax_shape(scores: Tensor, by_row: Tensor, by_column: Tensor, first: int) -> tuple[int, ...]:
    return scores.shape[0], scores.shape[1], first, by_row.shape[2], by_row.shape[3], by_column.shape[3]
