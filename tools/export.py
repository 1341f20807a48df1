"""Exports a trained audio encoder or classifier as ONNX or a torch.export program, and compares it with the model.

python tools/export.py --checkpoint runs/finetune-esc50-full-pretrained --output model.onnx
"""

import sys


def main() -> int:
    """Runs the command line; returns the exit status: 1 where the file would not equal the model."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.config.inference import ExportConfig
    from avssl.pipelines.export import export_model

    run(export_model, ExportConfig)
    return 0


if __name__ == "__main__":
    sys.exit(main())
