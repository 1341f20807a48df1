"""The transform that ``torch.fft.rfft`` calls, for kernels that call it themselves.

torch's wheels for x86 carry MKL within ``libtorch_cpu.so``. Its transforms are found there by name; where they are not,
or do not give ``torch.fft.rfft``'s very bits, there is none.
"""

import ctypes
import functools
import logging
import threading
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# mkl_dfti.h
_REAL, _NOT_INPLACE, _COMPLEX_COMPLEX = 33, 44, 39
_TRANSFORMS, _STORAGE, _PLACEMENT, _INPUT_DISTANCE, _OUTPUT_DISTANCE, _THREAD_LIMIT = 7, 10, 11, 14, 15, 27

_lock = threading.Lock()


def transform() -> ctypes.c_void_p | None:
    """Address of ``DftiComputeForward(descriptor, input, output)``, or None."""
    library = _library()
    return None if library is None else ctypes.cast(library.DftiComputeForward, ctypes.c_void_p)


def descriptor(size: int, batch: int) -> int | None:
    """Handle of a transform of ``batch`` float32 rows of ``size`` samples, out of place, on the calling thread.

    Several threads may use it at once. It lives as long as the process. None where there is no such transform.
    """
    with _lock:
        return _descriptor(size, batch)


@functools.cache
def _library() -> ctypes.CDLL | None:
    if not torch.backends.mkl.is_available():
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.DftiComputeForward.argtypes = [ctypes.c_void_p] * 3
        library.DftiComputeForward.restype = ctypes.c_long
        for name in ("DftiCreateDescriptor_s_1d", "DftiSetValue", "DftiCommitDescriptor"):
            getattr(library, name).restype = ctypes.c_long
    except (OSError, AttributeError) as error:
        logger.info("MKL's transforms are out of reach in torch %s: %s", torch.__version__, error)
        return None
    return library


@functools.cache
def _descriptor(size: int, batch: int) -> int | None:
    library = _library()
    if library is None:
        return None
    handle = ctypes.c_void_p()
    settings = {
        _TRANSFORMS: batch,
        _STORAGE: _COMPLEX_COMPLEX,
        _PLACEMENT: _NOT_INPLACE,
        _INPUT_DISTANCE: size,
        _OUTPUT_DISTANCE: size // 2 + 1,
        _THREAD_LIMIT: 1,
    }
    failed = library.DftiCreateDescriptor_s_1d(ctypes.byref(handle), ctypes.c_int(_REAL), ctypes.c_long(size))
    for key, value in settings.items():
        failed = failed or library.DftiSetValue(handle, ctypes.c_int(key), ctypes.c_long(value))
    failed = failed or library.DftiCommitDescriptor(handle)
    if failed or not _is_torchs(library, handle, size, batch):
        logger.info("MKL's transform of %d samples is not torch's here (status %s)", size, failed)
        return None
    return handle.value


def _is_torchs(library: ctypes.CDLL, handle: ctypes.c_void_p, size: int, batch: int) -> bool:
    """Whether the results are ``torch.fft.rfft``'s to the bit, over 140 dB of range."""
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(batch, size, generator=generator, dtype=torch.float32, device="cpu")
    rows *= torch.logspace(-7, 0, size, dtype=torch.float32, device="cpu")
    spectra = torch.empty(batch, size // 2 + 1, dtype=torch.complex64, device="cpu")
    failed = library.DftiComputeForward(handle, rows.data_ptr(), spectra.data_ptr())
    return not failed and torch.equal(spectra, torch.fft.rfft(rows))
