"""Lists and checks any data once: writes its manifest (Parquet), prints what can be used and what cannot, and why.

python tools/prepare.py --data grid --root data/grid
python tools/pretrain.py --data grid.parquet
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import yaml

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.data.catalog import list_data, names
from avssl.data.failures import DataError
from avssl.data.scan import report_lines, scan, scan_report


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", required=True, help=f"{', '.join(names())}, a data YAML, a folder, a .csv or .parquet"
    )
    parser.add_argument("--root", help="folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME")
    parser.add_argument("--options", type=yaml.safe_load, default={}, help="options of the data set: '{fold: 2}'")
    parser.add_argument("--output", type=Path, help="the manifest, default NAME.parquet; its summary becomes NAME.json")
    parser.add_argument("--workers", type=int, help="processes that read files; default: one per core")
    parser.add_argument("--deep", action="store_true", help="decode a bit of every stream instead of trusting headers")
    arguments = parser.parse_args(argv)
    if arguments.output is None:
        arguments.output = Path(f"{Path(arguments.data).stem}.parquet")
    logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        prepare(arguments)
    except (DataError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def prepare(arguments: argparse.Namespace) -> None:
    """Lists, scans, saves and reports.

    Raises:
        DataError: wrong arguments, or nothing that can be used (the manifest and its summary are written all the same).
    """
    if arguments.output.suffix != ".parquet":
        raise DataError(f"--output {arguments.output}: a manifest's name ends in .parquet")
    if not isinstance(arguments.options, dict):
        raise DataError(f"--options {arguments.options}: must be a mapping such as '{{fold: 2}}'")
    listed, _ = list_data(arguments.data, arguments.root, arguments.options)
    manifest = scan(listed, workers=arguments.workers, deep=True if arguments.deep else None)
    manifest.save(arguments.output)
    splits = manifest.column("split")
    report = {
        "data": arguments.data,
        "root": str(manifest.root),
        "options": arguments.options,
        "digest": manifest.digest,
        "splits": {split: splits.count(split) for split in sorted(set(splits))},
        "classes": {head: len(classes) for head, classes in manifest.heads.items()},
        **scan_report(manifest),
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for key in ("splits", "classes"):
        print(f"{key}: " + (", ".join(f"{name or '(none)'} {count}" for name, count in report[key].items()) or "none"))
    print("\n".join(report_lines(report)))
    if not any(report["usable"].values()):
        raise DataError(f"{arguments.data}: none of {len(manifest)} clips can be used; see above for the reasons")
    print(f"wrote {arguments.output}, digest {manifest.digest}")


if __name__ == "__main__":
    sys.exit(main())
