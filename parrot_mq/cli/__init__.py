"""The command ``parrot-mq``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

INSTALL = "pip install 'parrot-mq[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Without the ``cli`` extra: the line that installs it, status 2."""
    missing = [module for module in ("typer", "rich") if importlib.util.find_spec(module) is None]
    if missing:
        print(f"parrot-mq needs {' and '.join(missing)}: {INSTALL}", file=sys.stderr)
        return 2
    from parrot_mq.cli.app import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
