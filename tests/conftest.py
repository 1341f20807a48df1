"""Fixtures shared by all tests. Real data is optional: its tests skip, visibly, where it is absent."""

import os
from pathlib import Path

import pytest
import torch

import mast  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with ESC-10, FSDD, GRID, official annotation files and odd media, named by ``AVSSL_TEST_DATA``."""
    folder = os.environ.get("AVSSL_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data is absent: set AVSSL_TEST_DATA to its folder")
    return Path(folder)
