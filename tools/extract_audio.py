"""``avssl extract-audio``, from a clone."""

import sys

from avssl.commands import main

if __name__ == "__main__":
    sys.exit(main(["extract-audio", *sys.argv[1:]]))
