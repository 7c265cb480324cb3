"""The ranks of a tensor-parallel engine, as its own process, the first of them, sees them."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

from parrot_mq.errors import ConfigError, RankLost
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.models.parallel import Shard
from parrot_workers.engine.rank_command import Action, RankCommand
from parrot_workers.engine.rank_process import READY, RankSettings, joined, serve
from parrot_workers.engine.step_batch import Span

LOAD_TIMEOUT_S = 1800.0
"""How long the other ranks may load after the first has."""
POLL_S = 0.2
STOP_TIMEOUT_S = 10.0


class RankGroup:
    """Starts the other ``tensor_parallel_size`` - 1 processes, which load their parts of the model while the caller
    loads its own, ``shard``.

    As a context manager it ends them if the block raises. A process has at most one group at a time, and a script that
    makes one does so under ``if __name__ == "__main__"``, for the new processes import it. Raises ConfigError, and
    RankLost once a rank is gone or the ranks are out of step; then nothing can be run any more.
    """

    def __init__(self, engine: EngineSettings) -> None:
        if dist.is_initialized():
            raise ConfigError("this process has a process group of torch.distributed already: use one engine a process")
        size = engine.tensor_parallel_size
        self.shard = Shard(0, size)
        self._stack = contextlib.ExitStack()
        self._connections: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="parrot_mq_ranks_"))
            settings = RankSettings(engine, torch.get_num_threads(), str(Path(folder) / "rendezvous"))
            stack.callback(self._end_processes)
            context = multiprocessing.get_context("spawn")
            for rank in range(1, size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=serve, args=(theirs, settings, Shard(rank, size)), name=f"rank-{rank}", daemon=True
                )
                process.start()
                theirs.close()  # so that the end of either process is the end of the pipe
                self._connections.append(ours)
                self._processes.append(process)
            stack.enter_context(joined(settings, self.shard))
            # Before we leave the group: NCCL waits until all leave it.
            stack.callback(self._tell_to_stop)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.close()

    def wait_until_loaded(self) -> None:
        """Wait until all have loaded their parts of the model."""
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        for rank, (connection, process) in enumerate(zip(self._connections, self._processes, strict=True), start=1):
            while not connection.poll(POLL_S):
                if not process.is_alive():
                    raise RankLost(f"rank {rank} ended while it loaded the model (exit code {process.exitcode})")
                if time.monotonic() > deadline:
                    raise RankLost(f"rank {rank} did not load the model in {LOAD_TIMEOUT_S:.0f} seconds")
            try:
                answer = connection.recv_bytes()
            except EOFError as error:
                raise RankLost(f"rank {rank} ended while it loaded the model") from error
            if answer != READY:
                raise ConfigError(f"rank {rank}: {answer.decode()}")

    def allocate(self, num_blocks: int, max_num_tokens: int) -> None:
        """Have them allocate their caches, instead of those that they had."""
        self._tell(RankCommand(Action.ALLOCATE, (num_blocks, max_num_tokens)))

    def announce(self, spans: Sequence[Span], *, is_probe: bool) -> None:
        """Have the others compute ``spans`` too: the caller must do so now, or ``close``."""
        if not self._processes:
            raise RankLost("the ranks of this engine have ended: start a new one")
        self._tell(RankCommand(Action.PROBE if is_probe else Action.STEP, spans=spans))

    def close(self) -> None:
        """End the other processes and leave the process group. Idempotent."""
        self._stack.close()

    def _tell(self, command: RankCommand) -> None:
        data = command.encode()
        for rank, connection in enumerate(self._connections, start=1):
            try:
                connection.send_bytes(data)
            except OSError as error:
                raise RankLost(f"rank {rank} is gone (exit code {self._processes[rank - 1].exitcode})") from error

    def _tell_to_stop(self) -> None:
        stop = RankCommand(Action.STOP).encode()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has ended
                connection.send_bytes(stop)

    def _end_processes(self) -> None:
        self._tell_to_stop()
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._connections.clear()
        self._processes.clear()
