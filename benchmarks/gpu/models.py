"""``python -m benchmarks.gpu.models FOLDER MODEL DTYPE DEVICE``: random-weight Llamas, made on the device.

Nothing is downloaded. A model is an ordinary Hugging Face folder, with a tokenizer of made-up words.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.engine.peers import ROOT
from benchmarks.engine.shapes import DTYPES, ModelShape

FOLDER = ROOT / ".parrot_mq" / "bench-gpu"
"""Where models are kept once they are made (19 GB); git ignores it."""
MAX_LEN = 16384
SHAPES = {
    "check": ModelShape(512, 256, 384, 2, 4, 1, head_dim=64, max_len=MAX_LEN),
    "1b": ModelShape(128256, 2048, 8192, 16, 32, 8, head_dim=64, max_len=MAX_LEN, is_tied=True),
    "8b": ModelShape(128256, 4096, 14336, 32, 32, 8, head_dim=128, max_len=MAX_LEN),
}
"""The shapes of Llama-3.2-1B and Llama-3.1-8B; ``check`` is for comparing tokens."""
ITEM_BYTES = {"bf16": 2, "f32": 4}
TIMEOUT_S = 240
SPARE_BYTES = 1 << 30


def model_folder(model: str, dtype: str, device: str) -> Path:
    """Return the folder of a model, made at its first use. Raises SystemExit if the disk has no room for it."""
    folder = FOLDER / f"{model}-{dtype}"
    if folder.exists():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    size, free = SHAPES[model].num_weights * ITEM_BYTES[dtype], shutil.disk_usage(FOLDER).free
    if size + SPARE_BYTES > free:
        raise SystemExit(f"{folder} takes {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free on that disk")
    # A process of its own gives all of the device's memory back.
    command = [sys.executable, "-m", "benchmarks.gpu.models", str(folder), model, dtype, device]
    subprocess.run(command, cwd=ROOT, check=True, timeout=TIMEOUT_S)
    return folder


if __name__ == "__main__":
    from benchmarks.engine.models import make  # torch and transformers, which the others need not import

    assert sys.argv[3] in DTYPES
    make(Path(sys.argv[1]), SHAPES[sys.argv[2]], sys.argv[3], sys.argv[4])
