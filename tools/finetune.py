"""``avssl finetune``, from a clone."""

import sys

from avssl.commands import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
