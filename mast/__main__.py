"""``python -m mast``: the size and cost of the models, AST beside MAST, and what computes their blocks here."""

import argparse
from itertools import groupby

from mast.complexity import measure, table
from mast.fast import accelerate, backends
from mast.plugins import PluginError, import_plugin
from mast.registry import create_model, list_models

BASELINE = "ast_base"


def main(argv: list[str] | None = None) -> None:
    """Print the table, or the backends."""
    parser = argparse.ArgumentParser(
        prog="python -m mast",
        description="Parameters, multiply-accumulates (linear and convolution only; total with attention) and tokens.",
    )
    parser.add_argument(
        "models", nargs="*", help=f"names, also timm/NAME and hf/PATH; by default {', '.join(list_models())}"
    )
    parser.add_argument("--frames", type=int, default=1024, help="length of the spectrogram (default: 1024, 10.24 s)")
    parser.add_argument("--mels", type=int, default=128, help="mel bins (default: 128)")
    parser.add_argument("--classes", type=int, default=527, help="width of the head (default: 527, AudioSet)")
    parser.add_argument("--backends", action="store_true", help="what computes each block here, instead of the table")
    parser.add_argument("--backend", default="auto", help="for --backends: auto (default), reference, cpu or cuda")
    parser.add_argument("--device", default="cpu", help="for --backends: where the model is (default: cpu)")
    what = "a module or .py file that registers models; may be given several times"
    parser.add_argument("--import", dest="plugins", action="append", default=[], metavar="PLUGIN", help=what)
    args = parser.parse_args(argv)
    try:
        for plugin in args.plugins:
            import_plugin(plugin)
    except PluginError as error:
        parser.error(str(error))
    if args.backends:
        try:
            for name in args.models or list_models():
                print_backends(name, args.backend, args.device)
        except (ValueError, RuntimeError) as error:
            parser.error(str(error))
        return
    names = [name for name in args.models or list_models() if name != BASELINE]
    try:
        rows = [
            measure(name, num_classes=args.classes, mels=args.mels, frames=args.frames) for name in [*names, BASELINE]
        ]
    except (ValueError, TypeError, ImportError) as error:
        parser.error(str(error))
    print(f"{args.mels} mels x {args.frames} frames, {args.classes} classes")
    print(table(rows, rows[-1]))


def print_backends(name: str, backend: str, device: str) -> None:
    """One line for each run of neighbouring blocks that are computed alike."""
    model = accelerate(create_model(name, backend="reference").to(device), backend)  # type: ignore[arg-type]
    print(name)
    for way, group in groupby(backends(model).items(), key=lambda item: item[1]):
        names = [block for block, _ in group]
        print(f"  {names[0]}{f' ... {names[-1]}' if len(names) > 1 else ''}: {way}")


if __name__ == "__main__":
    main()
