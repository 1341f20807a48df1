"""The main job, end to end, on the demo set: pretrain, linear probe, fine-tune, retrieval, and a table of it all."""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.pipelines.demo import DemoConfig, demo, text_table

    result = run(demo, DemoConfig)
    if not result["finished"]:
        return 130
    for table in result["tables"]:
        print(f"\n{text_table(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
