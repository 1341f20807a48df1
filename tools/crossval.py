"""Cross-validates fine-tuning: once per fold and seed, with the mean, deviation and intervals of every metric.

python tools/crossval.py --data esc50 --config configs/finetune/esc10.yaml --folds fold=1..5
python tools/crossval.py --data fsdd --group-by speaker --head full
"""

import sys


def main() -> int:
    """Runs the command line; returns the exit status: 1 where a fold failed, 130 where a signal ended the run."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.config import CrossvalConfig, crossval_arguments
    from avssl.pipelines.crossval import crossval
    from avssl.pipelines.demo import text_table

    result = run(crossval, CrossvalConfig, crossval_arguments(sys.argv[1:]))
    if not result["finished"]:
        return 130
    for table in result.get("tables", []):
        print(f"\n{text_table(table)}\n{table.note}".rstrip())
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
