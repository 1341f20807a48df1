"""Trains a linear or a full head for audio classification; with no arguments on the demo set."""

import sys

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.cli import run
from avssl.config import FinetuneConfig
from avssl.pipelines.finetune import finetune

if __name__ == "__main__":
    result = run(finetune, FinetuneConfig)
    sys.exit(0 if result.get("finished", True) else 130)
