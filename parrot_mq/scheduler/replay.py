"""``python -m parrot_mq.scheduler.replay FILE``: makes the decisions of a decision log again, and compares them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from parrot_mq.errors import ConfigError, ParrotError
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.decision_log import OUTCOME, TOLD, outcome
from parrot_mq.scheduler.image import Image, class_of, from_scalar, restore

DIFFERENT = 1
"""Exit status where a decision comes out otherwise."""
SHOWN_CHARS = 2_000
MAX_ENDED = 100_000
"""Requests that are remembered after they have ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """The first line whose answer comes out otherwise: as it was written, and as it is now (JSON)."""

    line: int
    told: str
    written: str
    now: str

    def __str__(self) -> str:
        texts = (f"  {name:8}{text[:SHOWN_CHARS]}" for name, text in (("written", self.written), ("now", self.now)))
        return "\n".join([f"line {self.line}: `{self.told}` comes out otherwise", *texts])


@dataclasses.dataclass(frozen=True, slots=True)
class Replayed:
    """How far a log was followed: lines that told something, placements among their answers, and the first difference
    (None: everything comes out the same). ``is_cut``: its last line is not whole, and was left out. ``num_unfinished``:
    the log pauses at its end, because of so many unfinished requests; 0 if it does not.
    """

    num_told: int
    num_placements: int
    difference: Difference | None
    is_cut: bool = False
    num_unfinished: int = 0

    def __str__(self) -> str:
        lines = [f"{self.num_told} lines with {self.num_placements} placements come out the same"]
        if self.is_cut:
            lines.append("the last line is cut off, and was left out")
        if self.num_unfinished:
            lines.append(
                f"the log pauses here: {self.num_unfinished} requests were unfinished, too many to begin a new file; "
                "what was decided until there were fewer is in no file"
            )
        if self.difference is not None:
            lines.append(str(self.difference))
        return "\n".join(lines)


def replay(path: Path) -> Replayed:
    """Make every decision of the log at ``path`` again, up to the first that comes out otherwise.

    Raises ``ConfigError`` for a file that is no decision log.
    """
    terms: dict[int, _Term] = {}
    num_told = num_placements = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = orjson.loads(text)
                epoch, name = line["epoch"], line.get("told", "")
                if "core" in line:
                    terms[epoch] = _Term(restore(line["core"]))
                    continue
                if "paused" in line:
                    return Replayed(num_told, num_placements, None, num_unfinished=line["paused"])
                term = terms[epoch]
            except (ValueError, KeyError, TypeError) as error:
                if not text.endswith(b"\n"):  # the process ended while it wrote
                    return Replayed(num_told, num_placements, None, is_cut=True)
                raise ConfigError(f"line {number} of {path} is no line of a decision log: {error!r}") from None
            if name not in TOLD:
                raise ConfigError(f"line {number} of {path} tells {name!r}, which this version does not know")
            now = orjson.loads(orjson.dumps(term.tell(line)))
            written = {key: line[key] for key in OUTCOME if key in line}
            if now != written:
                difference = Difference(number, name, _text(written), _text(now))
                return Replayed(num_told, num_placements, difference)
            num_told += 1
            if name == "decide":
                num_placements += len(written["gave"]["has"]["placements"]["tuple"])
    return Replayed(num_told, num_placements, None)


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()


class _Term:
    """The core of one leader, and the requests that it may be told about: after they have ended, too."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._requests = dict(core.graph.requests)

    def tell(self, line: dict[str, Any]) -> dict[str, Image]:
        """Tell the core again what it was told; return what comes of it."""
        args = [self._heard(arg) for arg in line["with"]]
        kwargs = {key: self._heard(arg) for key, arg in line.get("and", {}).items()}
        self._core.ahead.orders.clear()  # sent by a courier
        self._core.upgraded.clear()
        try:
            gave = getattr(self._core, line["told"])(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it was, it was written down and is compared
            return {"raised": type(error).__name__}
        self._note(line["told"], args, gave)
        return outcome(self._core, gave, 0, 0)

    def _note(self, name: str, args: list[Any], gave: Any) -> None:
        """Remember the requests that are new."""
        if name == "fold" and args[0].kind == "submitted":
            ids = [spec["id"] for spec in orjson.loads(args[0].fields["specs"])]
            self._requests |= {i: self._core.graph.requests[i] for i in ids if i in self._core.graph.requests}
        elif name in ("add", "learn_function"):  # the latter may give some that ended before the log began
            for node in gave if isinstance(gave, list) else [gave]:
                if node is not None:
                    self._requests.setdefault(node.id, node)
        if len(self._requests) > MAX_ENDED + 2 * len(self._core.graph.requests):
            self._requests = dict(self._core.graph.requests)

    def _heard(self, image: Image) -> Any:
        """Return the argument of which ``told`` made ``image``."""
        if isinstance(image, list):
            return [self._heard(item) for item in image]
        if isinstance(image, dict):
            if "request" in image:
                return self._core.graph.requests.get(image["request"]) or self._requests[image["request"]]
            if "tuple" in image:
                return tuple(self._heard(item) for item in image["tuple"])
            if "dict" in image:
                return {self._heard(key): self._heard(item) for key, item in image["dict"]}
            if "object" in image:
                fields = {name: self._heard(item) for name, item in image["has"].items()}
                return class_of(image["object"])(**fields)
        return from_scalar(image)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a log; return 0 if all comes out the same, ``DIFFERENT`` if not, 2 for what is no log."""
    parser = argparse.ArgumentParser(
        prog="parrot-mq replay",
        description="Make the decisions of a decision log again, and report the first that comes out otherwise.",
        epilog="`parrot-mq scheduler --decision-log FILE` writes one.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        replayed = replay(given.file)
    except (OSError, ParrotError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(replayed)
    return 0 if replayed.difference is None else DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
