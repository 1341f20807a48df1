"""Exports a trained audio encoder or classifier as ONNX or a torch.export program, and compares it with the model.

avssl export --checkpoint runs/finetune-esc50-full-pretrained --output model.onnx
"""

from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config.inference import ExportConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status: 1 where the file would not equal the model."""
    config = parse(ExportConfig, argv, "export")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.export import export_model

    export_model(config)
    return 0
