"""``avssl advise``, from a clone."""

import sys

from avssl.commands import main

if __name__ == "__main__":
    sys.exit(main(["advise", *sys.argv[1:]]))
