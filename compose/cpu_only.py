"""Fail where anything of CUDA is installed or would be: the CPU image holds none of it."""

import importlib.metadata
import re
import sys

CUDA = re.compile(r"(nvidia|cuda|triton)", re.IGNORECASE)


def cuda_packages() -> list[str]:
    """Return CUDA packages that are installed, and those that the installed torch asks for."""
    installed = [str(dist.metadata["Name"]) for dist in importlib.metadata.distributions()]
    wanted = [text for text in importlib.metadata.requires("torch") or [] if "extra ==" not in text]
    return sorted({name for name in installed + wanted if CUDA.match(name)})


if __name__ == "__main__":
    if found := cuda_packages():
        sys.exit(
            f"the CPU image would hold CUDA packages ({', '.join(found[:3])}, ...): name an index that has "
            "CPU builds of torch, as in PIP_ARGS='--extra-index-url URL' docker compose build"
        )
