"""``avssl pretrain``, from a clone."""

import sys

from avssl.commands import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
