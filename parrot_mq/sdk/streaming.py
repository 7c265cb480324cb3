"""Reading an output while it is generated."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from parrot_mq.errors import StreamRestarted
from parrot_mq.keys import partition_of
from parrot_mq.messages import Objective, VariableState, stricter
from parrot_mq.sdk.collect import Collector
from parrot_mq.sdk.failing import not_in_time
from parrot_mq.sdk.hub import GRACE_POLL_S
from parrot_mq.store.answers import unknown_variable

if TYPE_CHECKING:
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.variable import SemanticVariable
    from parrot_mq.store.records import TokenPiece


class Transcript:
    """The text that a stream has shown, joined over the attempts of its request.

    An attempt that runs again repeats what was published; it must repeat it exactly. ``boundaries`` maps a count of
    tokens to the count of characters that stood before them.
    """

    def __init__(self, variable_id: str) -> None:
        self._variable_id = variable_id
        self._ids: list[int] = []
        self._text = ""
        self._fence: str | None = None
        self._at = 0
        """Characters that the current attempt has shown, those it went on from included."""
        self._boundaries = {0: 0}

    @property
    def text(self) -> str:
        """All that was shown."""
        return self._text

    def add(self, piece: TokenPiece) -> str:
        """Return the text of ``piece`` that is new. Raises ``StreamRestarted`` if it contradicts what was shown."""
        if piece.fence != self._fence:
            self._fence = piece.fence
            self._at = self._position(piece.offset)
        self._check_ids(piece)
        start, end = self._at, self._at + len(piece.text)
        shown = self._text[start:end]
        if not piece.text.startswith(shown):
            raise self._restarted()
        fresh = piece.text[len(shown) :]
        self._text += fresh
        self._at = end
        if piece.token_ids:  # an engine that tells no ids repeats its text from the start
            self._boundaries[piece.offset + len(piece.token_ids)] = end
        return fresh

    def _position(self, offset: int) -> int:
        """Return how many characters stand before token ``offset``."""
        try:
            return self._boundaries[offset]
        except KeyError:
            raise self._restarted() from None

    def _check_ids(self, piece: TokenPiece) -> None:
        known = self._ids[piece.offset : piece.offset + len(piece.token_ids)]
        if piece.token_ids and (piece.offset > len(self._ids) or tuple(known) != piece.token_ids[: len(known)]):
            raise self._restarted()
        self._ids.extend(piece.token_ids[len(known) :])

    def _restarted(self) -> StreamRestarted:
        return StreamRestarted(
            f"the request behind {self._variable_id} was run again and went another way after {len(self._text)} "
            "characters; read the stream again from its start, or get() the value"
        )


async def stream(
    link: Link, variable: SemanticVariable, perf: Objective, timeout_s: float | None
) -> AsyncGenerator[str, None]:
    """Yield pieces of a variable's text; see ``SemanticVariable.stream``."""
    vid = variable.id
    timeout_s = link.settings.get_timeout_s if timeout_s is None else timeout_s
    variable._wanted = stricter(variable._wanted, perf)
    await link.confirm([variable])
    transcript = Transcript(vid)
    hub = link.hub(partition_of(vid))
    async with hub.watching(vid, link.channel(variable)) as changed:
        state, after, seen_at = await _ask(link, variable, perf), "0", time.monotonic()
        is_closed = state is not VariableState.PENDING  # ready already: the value is all there is to show
        while not is_closed:
            changed.clear()
            part = await hub.taps.read(vid, after)
            for piece in part.pieces:
                is_closed = is_closed or piece.last
                if text := "" if piece.last else transcript.add(piece):
                    yield text
            if part.pieces:
                after, seen_at = part.pieces[-1].entry_id, time.monotonic()
            if part.is_cut:
                continue
            is_closed = is_closed or part.state is not VariableState.PENDING
            if not is_closed and not await _change(changed, link.settings.recheck_s, seen_at + timeout_s):
                raise await not_in_time(link, Collector([variable]), timeout_s)
    (value,) = await link.resolve([variable], None, timeout_s)
    if value.startswith(transcript.text) and (rest := value[len(transcript.text) :]):
        yield rest


async def _ask(link: Link, variable: SemanticVariable, perf: Objective) -> VariableState:
    """Have the output streamed; return the variable's state. A variable that nobody has made yet is waited for."""
    deadline = time.monotonic() + link.store.settings.want_grace_s
    taps = link.hub(partition_of(variable.id)).taps
    while (state := await taps.want(variable.id, perf)) is None:
        if time.monotonic() > deadline:
            raise unknown_variable(variable.id)
        if variable.session is not None:  # it was confirmed once: Redis has lost it
            await link.restore([variable])
        else:
            await asyncio.sleep(GRACE_POLL_S)
    return state


async def _change(changed: asyncio.Event, recheck_s: float, deadline: float) -> bool:
    """Wait for a wake-up, or until it is time to look again; False once ``deadline`` has passed."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(left_s, recheck_s)):
            await changed.wait()
    return True
