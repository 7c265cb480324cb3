"""Print the requirements of pyproject.toml, the core's and those of the extras named, one a line.

python compose/requirements.py [EXTRA ...] [!PACKAGE ...]     (``!triton`` leaves triton out)

An image installs them before it copies the code, so that a changed line of code does not fetch torch again.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def requirements(words: list[str]) -> list[str]:
    """Return the requirements that ``words`` ask for; ``KeyError`` for an extra that does not exist."""
    left_out = {word[1:] for word in words if word.startswith("!")}
    wanted = list(PROJECT["dependencies"])
    for extra in words:
        if not extra.startswith("!"):
            wanted += PROJECT["optional-dependencies"][extra]
    return [text for text in wanted if re.split(r"[^\w.-]", text)[0] not in left_out]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
