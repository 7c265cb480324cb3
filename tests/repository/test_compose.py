"""The compose deployment, as far as it can be looked at without a Docker engine; compose/prove.sh does the rest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_images_are_built_on_nothing_else() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "compose" / "Dockerfile").read_text(), re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "compose" / "Dockerfile").read_text(), re.MULTILINE)
    assert set(bases) - set(stages) == {"python:3.11-slim-bookworm"}
    assert set(re.findall(r"image: (\S+)", COMPOSE)) - {"parrot-mq:core", "parrot-mq:cpu", "parrot-mq:gpu"} == {
        "redis:7-bookworm"
    }


def test_every_image_ends_as_a_user_of_its_own() -> None:
    stages = re.split(r"^FROM ", (ROOT / "compose" / "Dockerfile").read_text(), flags=re.MULTILINE)
    finals = [stage for stage in stages if "CMD" in stage]
    assert len(finals) == 3
    assert all("USER parrot" in stage for stage in finals)


def test_redis_keeps_what_it_acknowledged() -> None:
    settings = (ROOT / "compose" / "redis.conf").read_text().splitlines()
    for line in ("appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"):
        assert line in settings


def test_requirements_come_from_the_project_file() -> None:
    printed = run(sys.executable, "compose/requirements.py", "cli", "worker", "!triton").stdout.splitlines()
    names = {re.split(r"\W", line)[0] for line in printed}
    assert {"redis", "typer", "torch"} <= names
    assert "triton" not in names
    assert run(sys.executable, "compose/requirements.py", "nonsense").returncode != 0


def fake_torch(folder: Path, *requires: str) -> None:
    metadata = folder / "torch-2.13.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        "Name: torch",
        "Version: 2.13.0",
        *(f"Requires-Dist: {text}" for text in requires),
    ]
    metadata.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("requires", "status"),
    [(["filelock"], 0), (["filelock", "nvidia-cudnn-cu13==9.1"], 1), (["triton==3.7.1"], 1)],
)
def test_a_cuda_build_is_found_out_by_what_it_asks_for(tmp_path: Path, requires: list[str], status: int) -> None:
    fake_torch(tmp_path, *requires)
    ran = run(sys.executable, "-S", "compose/cpu_only.py", PYTHONPATH=str(tmp_path))
    assert ran.returncode == status, ran.stderr
    assert ("--extra-index-url" in ran.stderr) == bool(status)


@pytest.mark.parametrize(
    ("wrapper_status", "status", "says"),
    [(75, 0, "SKIPPED: the compose proof, for there is no Docker engine here\n"), (3, 3, "")],
)
def test_the_proof_is_skipped_only_without_an_engine(
    tmp_path: Path, wrapper_status: int, status: int, says: str
) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f"#!/bin/sh\n[ \"$SERVICES\" = 'scheduler engine' ] && exit {wrapper_status}\n")
    wrapper.chmod(0o755)
    ran = run("bash", "compose/prove.sh", COMPOSE_WRAPPER=str(wrapper))
    assert (ran.returncode, ran.stdout) == (status, says)


def test_the_proof_without_docker_says_so(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    ran = run("bash", "compose/prove.sh", PATH=f"{tmp_path}:{os.environ['PATH']}", COMPOSE_WRAPPER="")
    assert ran.returncode == 0
    assert ran.stdout.startswith("SKIPPED")
