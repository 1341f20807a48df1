"""Draws what augmentation does to clips, and writes them to listen to; with no arguments on the demo set."""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.config import AugmentSheetConfig
    from avssl.pipelines.augment import augment_sheet
    from avssl.pipelines.recipes import recipe_arguments

    run(augment_sheet, AugmentSheetConfig, recipe_arguments(sys.argv[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
