"""The process of a rank other than the first: it computes what the engine's process tells it to."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from parrot_mq.errors import ConfigError, RankLost
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.model_cache import make_cache
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models.load import ModelPath, load_model
from parrot_workers.engine.models.parallel import Shard
from parrot_workers.engine.rank_command import Action, RankCommand

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 120.0
"""How long a rank waits for the others: to start, and in a step."""
LEAVE_TIMEOUT_S = 10.0
READY = b""
"""What a rank answers once its model is loaded; anything else is what went wrong, in words."""


@dataclasses.dataclass(frozen=True, slots=True)
class RankSettings:
    """What every rank must know; ``rendezvous`` is a file that does not exist yet."""

    engine: EngineSettings
    num_threads: int
    rendezvous: str


@contextlib.contextmanager
def joined(settings: RankSettings, shard: Shard) -> Iterator[None]:
    """Be ``shard``'s rank in a process group of all. Raises RankLost if they do not come together in time."""
    device = settings.engine.rank_place(shard.rank)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"file://{settings.rendezvous}",
            rank=shard.rank,
            world_size=shard.size,
            timeout=datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S),
            # Given the device, NCCL connects the ranks now, not in the first step.
            device_id=device if on_gpu else None,
        )
    except RuntimeError as error:
        raise RankLost(f"{shard.size} ranks did not come together: {error}") from error
    try:
        yield
    finally:
        _leave(device)


def _leave(device: torch.device) -> None:
    """Leave the process group. By NCCL the ranks leave together: one that is gone would be waited for without end."""
    if device.type != "cuda":
        dist.destroy_process_group()
        return

    def leave() -> None:
        torch.cuda.set_device(device)
        dist.destroy_process_group()

    leaving = threading.Thread(target=leave, name="leave-nccl", daemon=True)
    leaving.start()
    leaving.join(LEAVE_TIMEOUT_S)
    if leaving.is_alive():
        logger.warning("another rank is gone: this process can be in no other process group until it ends")


def serve(connection: Connection, settings: RankSettings, shard: Shard) -> None:
    """Compute until told to stop, or until the engine's process or another rank is gone. Runs in its own process."""
    # Ctrl-C goes to every process of a terminal; the engine's own decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(settings.num_threads)
    with connection, joined(settings, shard):
        device = settings.engine.rank_place(shard.rank)
        try:
            model = load_model(
                str(settings.engine.model),
                device=device,
                dtype=settings.engine.dtype,
                path=ModelPath.FAST,
                max_model_len=settings.engine.max_model_len,
                shard=shard,
            )
        except ConfigError as error:
            connection.send_bytes(str(error).encode())
            return
        connection.send_bytes(READY)
        runner: ModelRunner | None = None
        with contextlib.suppress(EOFError, ConnectionError, RankLost):  # nobody is left to be told
            while (command := RankCommand.decode(connection.recv_bytes())).action is not Action.STOP:
                if command.action is Action.ALLOCATE:
                    num_blocks, num_tokens = command.sizes
                    cache = make_cache(settings.engine, model, num_blocks)
                    runner = ModelRunner(model, cache, max_num_tokens=num_tokens)
                    continue
                assert runner is not None, "a step before the cache was allocated"
                if command.action is Action.PROBE:
                    runner.run_probe(command.spans)
                else:
                    runner.run(command.spans)
