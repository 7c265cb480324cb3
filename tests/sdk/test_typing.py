from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_mypy_understands_the_sdk(tmp_path: Path) -> None:
    """Values have the types that a reader expects, and the marked mistakes are found (unused ignores are errors)."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--no-error-summary"]
    command += ["--follow-imports", "silent", str(HERE / "typing_examples.py")]
    done = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stdout) == (0, "")
