"""``parrot-mq doctor``: what is missing here, and how to get it; also the health checks of a deployment."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import platform
import shutil
import socket
import sys
from typing import Annotated

import typer
from rich.markup import escape

from parrot_mq.cli.console import RedisUrl, existing_redis, out
from parrot_mq.cli.listing import Column, Listing
from parrot_mq.errors import ConfigError, ParrotError
from parrot_mq.messages import EngineState
from parrot_mq.stack import leader
from parrot_mq.store import Store, connect
from parrot_mq.store.address import masked
from parrot_mq.store.program import PROGRAMS, find_server
from parrot_mq.store.reader import engines as read_engines
from parrot_mq.store.server import known_url

MIN_REDIS = (6, 2)
_COLUMNS = (Column(""), Column("what"), Column("found", flexible=True), Column("to get it", flexible=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty where all is well; ``needed``: nothing works without it."""

    subject: str
    found: str
    remedy: str = ""
    needed: bool = False


_PACKAGES = (
    ("redis", "redis", "parrot-mq", True),
    ("orjson", "orjson", "parrot-mq", True),
    ("pydantic", "pydantic", "parrot-mq", True),
    ("torch", "torch", "parrot-mq[worker]", False),
    ("transformers", "transformers", "parrot-mq[worker]", False),
    ("safetensors", "safetensors", "parrot-mq[worker]", False),
    ("triton", "triton", "parrot-mq[worker]", False),
)
"""Distribution, what it is, where it comes with, whether nothing works without it."""


def doctor(
    redis_url: RedisUrl = None,
    scheduler: Annotated[bool, typer.Option("--scheduler", help="Only: does a scheduler lead?")] = False,
    engine: Annotated[bool, typer.Option("--engine", help="Only: is an engine of this host ready?")] = False,
) -> None:
    """Say what is missing here and how to get it. With an option: a health check that answers by its exit status."""
    if scheduler or engine:
        asyncio.run(_health(existing_redis(redis_url), scheduler, engine))
        return
    findings = [*python_findings(), *tool_findings(), *asyncio.run(redis_findings(redis_url))]
    listing = Listing(f"parrot-mq {importlib.metadata.version('parrot-mq')}", _COLUMNS)
    for finding in findings:
        mark = "[green]ok[/]" if not finding.remedy else "[bold red]missing[/]" if finding.needed else "[yellow]-[/]"
        listing.add(mark, finding.subject, escape(finding.found), escape(finding.remedy))
    out().print(listing)
    if any(finding.needed and finding.remedy for finding in findings):
        raise typer.Exit(1)


def python_findings() -> list[Finding]:
    """Look at the interpreter and the packages, importing none of them."""
    findings = [Finding("Python", platform.python_version(), needed=True)]
    for name, subject, source, needed in _PACKAGES:
        try:
            findings.append(Finding(subject, importlib.metadata.version(name), needed=needed))
        except importlib.metadata.PackageNotFoundError:
            if name != "triton" or sys.platform == "linux":
                findings.append(Finding(subject, "not installed", f"pip install '{source}'", needed))
    return findings


def tool_findings() -> list[Finding]:
    """Look for a compiler and a Redis server program."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    server = find_server()
    return [
        Finding(
            "C++ compiler",
            compiler or "none: kernels cannot be compiled",
            "" if compiler else "apt-get install g++",
        ),
        Finding(
            "Redis server",
            str(server or "none"),
            "" if server else f"apt-get install {PROGRAMS[0]}, or pip install 'parrot-mq[embedded]'",
        ),
    ]


async def redis_findings(redis_url: str | None) -> list[Finding]:
    """Look at the Redis in use and at who works on it."""
    url = known_url(redis_url)
    if url is None:
        return [Finding("Redis in use", "none", "parrot-mq up starts one here; or give --redis-url")]
    try:
        store = await connect(url)
    except ParrotError as error:
        return [Finding("Redis in use", masked(url), str(error), needed=True)]
    async with store:
        return [*await _server_findings(store), *await _service_findings(store)]


async def _server_findings(store: Store) -> list[Finding]:
    info = await store.partitions[0].robust(store.client.info)
    kind = info.get("server_name", "redis")
    text = str(info.get("valkey_version") or info["redis_version"])
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    policy = info.get("maxmemory_policy", "noeviction")
    old = version < MIN_REDIS
    return [
        Finding(
            "Redis in use", f"{kind} {text} at {masked(store.url)}", "Redis 6.2 or later" if old else "", needed=True
        ),
        Finding(
            "Redis persistence",
            "append-only file on" if info.get("aof_enabled") else "off: a crash of Redis loses acknowledged work",
            "" if info.get("aof_enabled") else "redis-cli CONFIG SET appendonly yes",
        ),
        Finding(
            "Redis eviction",
            str(policy),
            "" if policy == "noeviction" else "redis-cli CONFIG SET maxmemory-policy noeviction",
        ),
    ]


async def _service_findings(store: Store) -> list[Finding]:
    leads = await leader(store)
    ready = [record for record in (await read_engines(store)).values() if record and record.state is EngineState.READY]
    models = ", ".join(sorted({record.model for record in ready}))
    return [
        Finding("scheduler", f"{leads} leads" if leads else "none leads", "" if leads else "parrot-mq scheduler"),
        Finding(
            "engines", f"{len(ready)} ready: {models}" if ready else "none ready", "" if ready else "parrot-mq engine"
        ),
    ]


async def _health(url: str, scheduler: bool, engine: bool) -> None:
    async with await connect(url) as store:
        if scheduler and not await leader(store):
            raise ConfigError(f"no scheduler leads on {url}")
        host = socket.gethostname()
        if engine and not any(
            record is not None and record.host == host and record.state is EngineState.READY
            for record in (await read_engines(store)).values()
        ):
            raise ConfigError(f"no engine of host {host} is ready on {url}")
