"""The house's own rules: folders that are no packages, pins for everything, names that stay in one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("folder", ["kernels", "workers"])
def test_a_folder_that_holds_a_package_is_none(folder: str) -> None:
    """``kernels`` as a package would shadow the one of that name that transformers imports."""
    assert (ROOT / folder / f"parrot_{folder}" / "__init__.py").exists()
    assert not (ROOT / folder / "__init__.py").exists()


def pins() -> dict[str, str]:
    rows = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(row.split("==") for row in rows if row and not row.startswith("#"))


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    for requirement in map(Requirement, texts):
        if requirement.name != "parrot-mq":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_pins_name_no_build_and_keep_redis_where_arq_needs_it() -> None:
    assert pins()["torch"] == "2.13.0"
    assert pins()["redis"].startswith("5.3.")
    assert not [name for name, version in pins().items() if "+" in version or name.startswith("nvidia")]


def test_the_core_needs_three_packages() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"redis", "orjson", "pydantic"}


def third_party_imports(folder: Path) -> set[str]:
    """Return the top-level names that the code under ``folder`` imports, the standard library's and ours left out."""
    ours = {"parrot_mq", "parrot_kernels", "parrot_workers"}
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - ours


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("parrot_mq", ["cli"]), ("workers/parrot_workers", ["worker", "sim"]), ("kernels/parrot_kernels", ["worker"])],
)
def test_code_imports_only_what_it_declares(folder: str, extras: list[str]) -> None:
    """What happens to be there because another package needs it is not there everywhere."""
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    assert third_party_imports(ROOT / folder) <= {Requirement(text).name for text in texts}


def test_every_script_is_in_the_wheel(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    copy = tmp_path / "copy"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        if name.startswith(("parrot_mq/", "kernels/", "workers/", "pyproject", "README", "LICENSE")):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*command, str(copy)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tops = {"parrot_mq": "", "parrot_kernels": "kernels/", "parrot_workers": "workers/"}
    outside = {
        name.removeprefix(folder)
        for top, folder in tops.items()
        for name in files
        if name.startswith(f"{folder}{top}/")
    }
    assert inside == outside


def test_only_the_keys_file_makes_keys() -> None:
    makers = {
        str(path.relative_to(ROOT))
        for folder in ("parrot_mq", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"[\"']pmq:", path.read_text())
    }
    assert makers == {"parrot_mq/keys.py"}


def test_make_help_lists_the_two_commands() -> None:
    ran = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in (
        "make demo",
        "make test",
        "make test-redis8",
        "make bench-queue",
        "make bench-gpu",
        "make format",
        "make clean",
    ):
        assert command in ran.stdout


@pytest.mark.parametrize(("variable", "message"), [("PYTHON=false", "older than 3.11"), ("PYTHON=", "No Python 3.11")])
def test_make_says_which_python_it_needs(variable: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    ran = subprocess.run(
        ["make", variable, "new/bin/python"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert message in ran.stderr
