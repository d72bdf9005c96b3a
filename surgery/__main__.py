"""``python -m surgery``: the command line of :mod:`surgery.cli.main`."""

import sys

from surgery.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
