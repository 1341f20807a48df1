"""Pretrains an audio-visual pair on raw video; with no arguments on the demo set."""

import sys

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.cli import run
from avssl.config import PretrainConfig
from avssl.pipelines.pretrain import pretrain

if __name__ == "__main__":
    result = run(pretrain, PretrainConfig)
    sys.exit(0 if result.get("finished", True) else 130)
