"""The main job, end to end, on the demo set: pretrain, linear probe, fine-tune, retrieval, and a table of it all."""

import sys

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.cli import run
from avssl.pipelines.demo import DemoConfig, demo, text_table

if __name__ == "__main__":
    result = run(demo, DemoConfig)
    if not result["finished"]:
        sys.exit(130)
    for table in result["tables"]:
        print(f"\n{text_table(table)}")
