"""``python -m lion_lightning``: the same as the ``lion`` command."""

import sys

from lion_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
