"""Fixtures shared by all tests. Real data is optional: its tests skip, visibly, where it is absent."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forked_tools import ForkedTools

import mast  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.limits import Limits, limits, set_limits


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether tests that can be thorough are: with ``AVSSL_TEST_LONG=1``, for an hour instead of seconds."""
    return os.environ.get("AVSSL_TEST_LONG") == "1"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with ESC-10, FSDD, GRID, official annotation files and odd media, named by ``AVSSL_TEST_DATA``."""
    folder = os.environ.get("AVSSL_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data is absent: set AVSSL_TEST_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def cases(real_data: Path) -> Path:
    """Folder with small inputs that went wrong once, each with its right values in a README."""
    if not (real_data / "cases").is_dir():
        pytest.skip("the folder of AVSSL_TEST_DATA has no cases")
    return real_data / "cases"


@pytest.fixture
def limited() -> Iterator[Callable[[Limits], None]]:
    """Sets what a file may cost, until the test ends."""
    before = limits()
    yield set_limits
    set_limits(before)


@pytest.fixture(scope="session")
def forked_tools() -> Iterator[ForkedTools]:
    """Runs tools as users start them; what they import is imported once."""
    with ForkedTools(os.environ | {"OMP_NUM_THREADS": "1"}) as tools:
        yield tools
