"""Start a program that ends with its parent: ``python tether.py PARENT_PID PROGRAM [ARGUMENT ...]``.

A child that was killed together with nobody (its parent by ``kill -9``) would live on as an orphan. The kernel can send
it a signal instead, but the wish has to be uttered by the child itself, between fork and exec. Doing that in a
``preexec_fn`` is unsafe where there are threads, so this small program does it and then becomes the real one: same
process id, same descriptors.

The signal follows the *thread* that started the child: start children from a thread that outlives them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """Return ``command`` wrapped so that it gets SIGTERM when the calling process dies (on Linux; else unchanged)."""
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Ask the kernel for SIGTERM at the parent's death, then become the program. Exits 1 if the parent is gone."""
    import ctypes

    parent, *command = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"tether: prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):  # it died before the wish was uttered
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
