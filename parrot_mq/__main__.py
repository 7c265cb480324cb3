"""``python -m parrot_mq``: the command ``parrot-mq``."""

import sys

from parrot_mq.cli import main

if __name__ == "__main__":
    sys.exit(main())
