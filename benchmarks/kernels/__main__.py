"""``python -m benchmarks.kernels``: the linear layer of each shape beside oneDNN's and a bare read of the weights."""

from __future__ import annotations

import argparse

import torch

from benchmarks.kernels.linear import LAYERS, measure

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def main() -> None:
    """Print a line for each layer and number of rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--model", choices=sorted(LAYERS), default="l")
    parser.add_argument("--layers", type=lambda text: text.split(","), help="such as qkv,down; default: all")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64, 512])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="time for one line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.dtype}, {arguments.threads} threads; medians, and quartiles in % of the median")
    print(f"{'layer':>8} {'shape':>11} {'rows':>5} | {'us':>9} {'+-':>3} {'GB/s':>6} {'GFLOP/s':>7} | ", end="")
    print(f"{'oneDNN us':>9} {'+-':>3} {'ratio':>5} | {'read GB/s':>9} {'of read':>7}")
    for name in arguments.layers or LAYERS[arguments.model]:
        out_features, in_features = LAYERS[arguments.model][name]
        for line in measure(out_features, in_features, DTYPES[arguments.dtype], arguments.rows, arguments.seconds):
            print(f"{name:>8} {line}", flush=True)


if __name__ == "__main__":
    main()
