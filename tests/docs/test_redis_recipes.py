"""docs/redis.md is true: its recipes run and show what they say, and it names every key and field there is."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from parrot_mq.errors import ErrorRecord
from parrot_mq.messages import LATENCY, TTFT, Aim, EngineRecord, EngineState, LengthHistogram, Placed
from parrot_mq.settings import StoreSettings
from parrot_mq.store import connect
from parrot_mq.store.engine import register
from parrot_mq.store.records import DispatchItem, Lane, NewVariable, Usage
from parrot_mq.store.scheduler import import_variable, new_epoch, take_leadership
from parrot_mq.store.why import ask
from tests.store.lab import FUNCTION, Lab, snapshot

pytestmark = pytest.mark.redis

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RECIPES = [
    (command.strip(), output)
    for block in BLOCKS
    for command, _, output in (part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
]


WHY = Placed("completion", 840.5, (("cpu-0", 1210.0),), Aim("ttft", "0-v-test")).to_json()


class Pipeline(Lab):
    """The pipeline that the page shows: a few requests in different states, under ids that can be read."""

    async def step(self, name: str, *inputs: str, output: NewVariable | None = None) -> tuple[str, str]:
        """Submit ``0-r-<name>``, which reads ``inputs`` and makes ``0-v-<name>``."""
        variable = output or NewVariable(f"0-v-{name}", name)
        request = self.request(
            inputs, variable, id=f"0-r-{name}", call=f"0-c-{name}", function_name=f"write_{name}", output_name=name
        )
        await self.submit("0-s-demo", [] if output else [variable], [request], batch=f"batch-{name}")
        return request[0].id, variable.id

    async def go(self, request: str, engine: str = "cpu-1") -> str:
        """Dispatch and claim a request; return its fence."""
        (fence,) = await self.scheduler.dispatch([DispatchItem(request, engine, '{"rank":0}', WHY)], ["k3f9"])
        assignments, _ = await self.engine.receive(engine, "0", block_ms=100)
        await self.engine.start(engine, [a for a in assignments if a.request == request])
        return fence

    async def fail(self, request: str, *, retry: bool) -> None:
        error = ErrorRecord("EngineFailed", "CUDA error: an illegal memory access", request, "cpu-1", 1)
        await self.engine.fail(request, await self.go(request), error, retry=retry)

    async def populate(self) -> None:
        assert await take_leadership(self.store, "scheduler-7d2c", 600.0)
        self.scheduler.epoch = await new_epoch(self.store)
        for engine in ("cpu-0", "cpu-1"):
            await register(self.store, EngineRecord(engine, "torch", "tiny-llama", EngineState.READY, num_blocks=512))
        await self.producer.open_session("0-s-demo", "acme", "9f86d081")
        given = [
            NewVariable("0-v-task", "task", self.value("a snake game")),
            NewVariable("0-v-book", "book", self.value("x" * 40_000)),
            NewVariable("0-v-notes", "notes"),
        ]
        await self.submit("0-s-demo", given, batch="batch-given")
        await self.step("code", "0-v-task")
        await self.step("test", "0-v-task", "0-v-code")
        await self.step("review", "0-v-code", "0-v-test", "0-v-notes")
        await self.step("broken", "0-v-task")
        await self.step("fix", "0-v-broken")
        await self.step("flaky", "0-v-task")
        value, raw = self.value('print("snake")'), self.value(' print("snake")\n')
        await self.engine.complete("0-r-code", await self.go("0-r-code"), "0-v-code", value, Usage(12, 0, 6), raw)
        await self.producer.want("0-v-review", LATENCY)
        await self.producer.want("0-v-test", TTFT, stream=True)
        fence = await self.go("0-r-test")
        await self.engine.emit("0-r-test", fence, 0, [464, 1332], "def test")
        await self.engine.emit("0-r-test", fence, 2, [62], "_snake")
        await self.fail("0-r-broken", retry=False)
        await self.fail("0-r-flaky", retry=True)
        await self.step("summary", "0-v-book")
        await self.step("title", "0-v-task")
        await self.scheduler.dispatch([DispatchItem("0-r-title", "cpu-1", '{"rank":0}')], ["m2p7"])
        await self.redis.delete(self.keys.engine("cpu-0"))

    async def stir(self) -> None:
        """Bring about what the page's recipes do not show: the rarer keys and fields."""
        small = self.under(fanout_units=1)
        await self.step("a", "0-v-notes")
        await self.step("b", "0-v-notes")
        await small.producer.set_variable("0-v-notes", small.value("x"))
        away = Lab(self.store, 1)
        session, output = await away.session(), away.variable()
        await away.submit(session, [output], [away.request(["0-v-review", "0-v-test"], output)])
        for variable in ("0-v-review", "0-v-test"):
            await import_variable(self.store, 1, variable, "acme")
        await self.producer.cancel_variable("0-v-review")
        await self.step("big", "0-v-task")
        fence = await self.go("0-r-big")
        large = [type(self.value(""))("y" * 40_000, 40_000, "d", fence, (1, 2), "tiny-llama") for _ in range(2)]
        await self.engine.complete("0-r-big", fence, "0-v-big", large[0], Usage(), large[1])
        await self.go("0-r-summary")
        await self.engine.release(
            "cpu-1", [("0-r-test", str(await self.redis.hget(self.keys.request("0-r-test"), "fence")))]
        )
        await self.producer.cancel_requests(["0-r-title"])
        assert await self.scheduler.learn({("acme", FUNCTION.digest): {2: LengthHistogram().observed(41)}}) == 1
        assert (await ask(self.store, ["0-r-b"], 0.0)).note
        await self.scheduler.grant({"tiny-llama": Lane("cpu-1", 8)})


@pytest.fixture
async def pipeline(redis_url: str) -> AsyncIterator[Pipeline]:
    settings = StoreSettings(
        partitions=2, heartbeat_ttl_s=600.0, lease_s=600.0, backoff_base_s=600.0, backoff_max_s=600.0
    )
    async with await connect(redis_url, settings) as store:
        built = Pipeline(store)
        await built.populate()
        yield built


def pattern(documented: str) -> re.Pattern[str]:
    """Return what an output must match: as documented, where ``…`` is any text and times and entry ids any number."""
    parts = re.split(r"(…|\b\d{13}-\d+\b|\b\d{13}\b)", documented.rstrip("\n"))
    kinds = {"…": ".*"}
    return re.compile(
        "".join(
            kinds.get(
                part, r"\d{13}-\d+" if re.fullmatch(r"\d{13}-\d+", part) else r"\d{13}" if i % 2 else re.escape(part)
            )
            for i, part in enumerate(parts)
        ),
        re.DOTALL,
    )


def run(command: str, url: str) -> str:
    """Run a documented ``redis-cli`` command against ``url``; output as a terminal shows it."""
    program, *arguments = shlex.split(command)
    assert program == "redis-cli"
    parts = urlsplit(url)
    result = subprocess.run(
        [program, "-h", str(parts.hostname), "-p", str(parts.port), "--no-raw", *arguments],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return result.stdout


async def test_every_recipe_shows_what_the_page_says(pipeline: Pipeline, redis_url: str) -> None:
    assert len(RECIPES) >= 20
    wrong = []
    for command, documented in RECIPES:
        shown = await asyncio.to_thread(run, command, redis_url)
        if not pattern(documented).fullmatch(shown.rstrip("\n")):
            wrong.append(f"$ {command}\n-- documented\n{documented}-- shown\n{shown}")
    assert not wrong, "\n".join(wrong)


async def test_the_recipes_change_nothing(pipeline: Pipeline, redis_url: str) -> None:
    before = await pipeline.snapshot()
    for command, _ in RECIPES:
        await asyncio.to_thread(run, command, redis_url)
    assert await pipeline.snapshot() == before


def test_every_command_of_the_page_is_a_recipe() -> None:
    """No block in another language shows a command that this file does not run."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert {language for language, block in blocks if "redis-cli" in block} == {"console"}
    assert len(RECIPES) == sum(block.count("\n$ ") + block.startswith("$ ") for block in BLOCKS)


def documented_keys() -> dict[re.Pattern[str], tuple[str, str]]:
    """Return each key of the page's table as a pattern, with its type and the whole row."""
    rows = re.findall(r"^\| `(\.\.[^`]+)` \| (\w+)[^|]* \|(.*)$", PAGE, re.MULTILINE)
    found = {}
    for key, kind, row in rows:
        regex = "".join("[^:]+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<\w+>)", key[2:]))
        found[re.compile(r"pmq:\{p\d+\}:" + regex)] = (kind, row)
    return found


async def test_every_key_and_field_is_on_the_page(pipeline: Pipeline) -> None:
    await pipeline.stir()
    table = documented_keys()
    seen = set()
    undocumented = set()
    for key, content in (await snapshot(pipeline.redis)).items():
        matching = [p for p in table if p.fullmatch(key)]
        if len(matching) != 1:
            undocumented.add(key)
            continue
        seen.add(matching[0])
        kind, row = table[matching[0]]
        assert await pipeline.redis.type(key) == kind.replace("sorted", "zset"), key
        if kind == "hash":
            undocumented |= {f"{key}: {field}" for field in content if f"`{field}`" not in row}
        elif kind == "stream":
            undocumented |= {f"{key}: {f}" for _, entry in content for f in entry if f"`{f}`" not in PAGE}
    assert not undocumented
    missing = [p.pattern for p in table if p not in seen]
    assert not missing, "documented, but never seen"


async def test_every_kind_of_entry_is_on_the_page(pipeline: Pipeline) -> None:
    await pipeline.stir()
    for number in (0, 1):
        keys = Lab(pipeline.store, number).keys
        entries = await pipeline.redis.xrange(keys.intake) + await pipeline.redis.xrange(keys.events)
        for _, fields in entries:
            kind = fields.get("kind") or fields["event"]
            assert f"`{kind}`" in PAGE, kind


async def test_the_pages_template_digest_is_the_real_one() -> None:
    assert FUNCTION.digest in PAGE
