"""The decision log: everything that the core of a scheduler is told, and what it decides, one JSON object a line.

From it every decision can be made again, elsewhere and later, and comes out the same (see ``replay``): the core depends
on nothing else. A line begins anew with the ``core`` as it is, or says what the core was ``told``
(a method of ``Core``, ``with`` its arguments) and what it ``gave`` back. Each carries the leader's ``epoch``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.image import Image, Unfit, Whole, name_of, scalar
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import EngineLoad
from parrot_mq.settings import SchedulerSettings

MAX_CHECKPOINT = 8_000
"""With more unfinished requests than this no new file begins: to write the core down takes 0.05 to 0.1 ms for each of
them, in which nothing is scheduled and leadership is not renewed."""
MAX_GROWTH = 4
"""Meanwhile a file grows to so many times its size; then the log pauses."""

TOLD = (
    "add",
    "adopt",
    "decide",
    "describe",
    "enqueue",
    "finish",
    "fold",
    "forget_engine",
    "grant_lanes",
    "learn_function",
    "look_ahead",
    "make_ready",
    "make_waiting",
    "put_back",
    "rejects",
    "release_held",
    "resolve",
    "took_lane",
    "update_engines",
    "want",
)
"""The methods that change a core: what it is told, and what it is asked to decide."""
ASKED = ("dead_engines", "due_lanes", "duration_ms")
"""Those that only answer."""

log = logging.getLogger(__name__)


class DecisionLog:
    """A file of lines, and the one before it (``.1``): when one is full it replaces the other, and a new one begins.

    Full is what has ``max_bytes`` after its first line, which is as long as it has to be. A file that cannot be written
    (the disk is full) ends the log, not the scheduler.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._size = 0
        self._broken = False

    @property
    def is_full(self) -> bool:
        """Whether a new file is due."""
        return self._size >= self._max_bytes

    @property
    def is_overfull(self) -> bool:
        """Whether nothing more is to be written until there is a new file."""
        return self._size >= MAX_GROWTH * self._max_bytes

    def write(self, data: dict[str, Any]) -> None:
        """Append a line."""
        if self._broken:
            return
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._size = os.fstat(self._file).st_size
            self._size += os.write(self._file, orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            self.end(error)

    def rotate(self, first: dict[str, Any]) -> None:
        """Begin a new file with the line ``first``; this one becomes the one before it."""
        self.close()
        try:
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        except FileNotFoundError:
            log.warning("the decision log %s was taken away; a new one begins", self.path)
        except OSError as error:
            self.end(error)
        self.write(first)
        self._size = 0

    def end(self, error: Exception) -> None:
        """Write nothing more."""
        log.warning("the decision log %s ends here: %s", self.path, error)
        self._broken = True

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class LoggedCore(Core):
    """A core that writes down what it is told and what it decides. What it calls itself is no news."""

    image_as = Core
    image_without = ("_epoch", "_decisions", "_depth", "_grows", "_paused")

    def __init__(self, settings: SchedulerSettings, epoch: int, decisions: DecisionLog) -> None:
        super().__init__(settings)
        self._epoch = epoch
        self._decisions = decisions
        self._depth = 0
        self._grows = self._paused = False
        decisions.write(self._beginning())

    def _beginning(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "core": Whole.of(self)}

    def _tell(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        method = getattr(Core, name)
        if self._depth:
            return method(self, *args, **kwargs)
        if self._decisions.is_full or self._paused:
            self._turn_over()
        if self._paused:
            return method(self, *args, **kwargs)
        line: dict[str, Any] = {"epoch": self._epoch, "told": name, "with": [told(arg) for arg in args]}
        if kwargs:
            line["and"] = {key: told(arg) for key, arg in kwargs.items()}
        before = len(self.ahead.orders), len(self.upgraded)
        self._depth += 1
        try:
            gave = method(self, *args, **kwargs)
            line |= outcome(self, gave, *before)
            return gave
        except Exception as error:
            line["raised"] = type(error).__name__
            raise
        finally:
            self._depth -= 1
            self._decisions.write(line)

    def _turn_over(self) -> None:
        """Begin a new file with the core as it is; while that is too much, let this one grow, or pause."""
        num_unfinished = len(self.graph.requests)
        if num_unfinished > MAX_CHECKPOINT:
            if self._decisions.is_overfull and not self._paused:
                self._decisions.write({"epoch": self._epoch, "paused": num_unfinished})
                self._say("pauses until then; a larger decision_log_mib bridges more")
                self._paused = True
            elif not self._grows:
                self._say(f"grows until then, up to {MAX_GROWTH} times its size")
            self._grows = True
            return
        self._grows = self._paused = False
        try:
            first = self._beginning()
        except Unfit as error:
            self._decisions.end(error)
        else:
            self._decisions.rotate(first)

    def _say(self, what: str) -> None:
        log.warning(
            "the decision log %s is full, and %d requests are unfinished; a new file begins with at most %d: it %s",
            self._decisions.path,
            len(self.graph.requests),
            MAX_CHECKPOINT,
            what,
        )


def _logged(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(Core, name))
    def method(self: LoggedCore, *args: Any, **kwargs: Any) -> Any:
        return self._tell(name, args, kwargs)

    return method


for _name in TOLD:
    setattr(LoggedCore, _name, _logged(_name))


def outcome(core: Core, gave: Any, num_orders: int, num_upgraded: int) -> dict[str, Image]:
    """Return what came of telling ``core`` something: the answer, and what its shell has to send to engines, that is
    hints beyond the first ``num_orders`` and changed objectives beyond the first ``num_upgraded``.
    """
    found: dict[str, Image] = {}
    if gave is not None:
        found["gave"] = told(gave)
    if orders := list(itertools.islice(core.ahead.orders, num_orders, None)):
        found["orders"] = told(orders)
    if upgraded := list(itertools.islice(core.upgraded, num_upgraded, None)):
        found["upgraded"] = told(upgraded)
    return found


OUTCOME = ("gave", "orders", "raised", "upgraded")


def told(value: Any) -> Image:
    """Return the image of an argument or an answer: requests and engines by their ids, all else in full."""
    if isinstance(value, RequestNode):
        return {"request": value.id}
    if isinstance(value, EngineLoad):
        return {"engine": value.id}
    if isinstance(value, list):
        return [told(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [told(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[told(key), told(item)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: told(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"object": name_of(type(value)), "has": fields}
    return scalar(value)
