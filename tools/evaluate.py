"""Evaluates a checkpoint on any data: retrieval and linear probe, or classification."""

import sys

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.cli import run
from avssl.config import EvaluateConfig
from avssl.pipelines.evaluate import evaluate

if __name__ == "__main__":
    result = run(evaluate, EvaluateConfig)
    sys.exit(0 if result.get("finished", True) else 130)
