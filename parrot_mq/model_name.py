"""What requests call a model that was given as a folder or an id."""

from __future__ import annotations

import re
from pathlib import Path


def is_folder(model: str) -> bool:
    """Whether ``model`` means a folder, not an id."""
    return model.startswith(("/", ".", "~")) or (model != "" and Path(model).is_dir())


def model_name(model: str) -> str:
    """Return the last part of the folder or id ``model``; what a name cannot hold becomes ``-``. Empty for empty."""
    path = Path(model).expanduser()
    last = path.resolve().name if is_folder(model) else path.name
    return re.sub(r"[^\w.:@+-]+", "-", last)
