"""``python -m parrot_workers``: start an engine worker."""

from __future__ import annotations

import sys

from parrot_workers.worker.process import main

if __name__ == "__main__":
    sys.exit(main())
