"""Every example runs as it stands, and the README's first program is one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parrot_mq.store.server import URL_VARIABLE, RedisServer
from tests.e2e.processes import ROOT, pipeline

README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRINTED = {
    "await_by_id.py": "the other process got:",
    "first.py": "the first part alone:",
    "map_reduce.py": "half 2:",
    "sync_program.py": "in the evening:",
    "two_outputs.py": "reason:",
}
"""What each example prints before the text that the model made."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("examples")
    with RedisServer(folder / "redis") as server, pipeline(server.url, folder) as system:
        system.scheduler(), system.engine('{"decode_base_ms": 1, "decode_per_seq_ms": 0}')
        yield server.url


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES} == set(PRINTED)


def output_of(path: Path, url: str) -> str:
    """Run a program, which must say nothing on standard error; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env={**os.environ, URL_VARIABLE: url, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.redis
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, url: str) -> None:
    printed = output_of(path, url)
    _, found, made = printed.strip().rpartition(PRINTED[path.name])
    assert found, printed
    assert made.strip(), "the model's text is missing"


@pytest.mark.redis
def test_the_first_program_prints_what_the_readme_shows(tmp_path: Path) -> None:
    shown = README.read_text().partition("it prints\n\n```text\n")[2].partition("```")[0]
    with RedisServer(tmp_path / "redis") as server, pipeline(server.url, tmp_path) as system:
        system.scheduler(), system.demo_engine()
        assert output_of(ROOT / "examples" / "first.py", server.url) == shown


def test_readme_shows_the_first_example() -> None:
    shown = README.read_text().partition("```python\n")[2].partition("```")[0]
    _, _, code = (ROOT / "examples" / "first.py").read_text().partition('"""\n\n')
    assert shown == code
