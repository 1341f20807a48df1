"""``python -m mast``: the size and cost of the models, AST beside MAST."""

import argparse

from mast.complexity import measure, table
from mast.registry import list_models

BASELINE = "ast_base"


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m mast",
        description="Parameters, multiply-accumulates (linear and convolution only; total with attention) and tokens.",
    )
    parser.add_argument("models", nargs="*", help=f"names; all by default: {', '.join(list_models())}")
    parser.add_argument("--frames", type=int, default=1024, help="length of the spectrogram (default: 1024, 10.24 s)")
    parser.add_argument("--mels", type=int, default=128, help="mel bins (default: 128)")
    parser.add_argument("--classes", type=int, default=527, help="width of the head (default: 527, AudioSet)")
    args = parser.parse_args(argv)
    names = [name for name in args.models or list_models() if name != BASELINE]
    try:
        rows = [
            measure(name, num_classes=args.classes, mels=args.mels, frames=args.frames) for name in [*names, BASELINE]
        ]
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.mels} mels x {args.frames} frames, {args.classes} classes")
    print(table(rows, rows[-1]))


if __name__ == "__main__":
    main()
