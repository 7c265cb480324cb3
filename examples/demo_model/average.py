"""Average the weights of refinements that began at the same checkpoint.

    python examples/demo_model/average.py --out FOLDER FIRST SECOND ...

Each refinement errs on other rare items; the average of their weights errs on fewer than any of them (Wortsman et al.,
"Model soups", ICML 2022).
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def average(folders: Sequence[Path], out: Path) -> None:
    """Write the checkpoint in ``out``: the mean of all weights, everything else from the first folder.

    Raises ``ValueError`` if the checkpoints have different tensors.
    """
    checkpoints = [load_file(folder / WEIGHTS) for folder in folders]
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} for weights in checkpoints]
    for folder, shape in zip(folders, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"{folder} has other tensors than {folders[0]}: only refinements of one model can be averaged"
            )
    mean = {
        name: torch.stack([weights[name].float() for weights in checkpoints]).mean(0).to(tensor.dtype)
        for name, tensor in checkpoints[0].items()
    }
    shutil.copytree(folders[0], out, dirs_exist_ok=True)
    save_file(mean, out / WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    """Read the arguments and average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("folders", type=Path, nargs="+", help="checkpoint folders")
    args = parser.parse_args()
    average(args.folders, args.out)


if __name__ == "__main__":
    main()
