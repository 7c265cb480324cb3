"""Streamed prefill: the tokens of a value flow into its reader's prompt while they are generated.

Of a waiting request the prompt's beginning is known, and behind it comes a value that another request is just
producing. What there is of it is computed ahead, again and again as it grows: the engine finds all but the newest
blocks in its cache. The ids are those that the reader will get, so that it finds everything; if they turn out to be
others, the blocks are never asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from parrot_mq.errors import ParrotError
from parrot_mq.keys import partition_of
from parrot_mq.messages import RequestSpec, SamplingParams, VariableState
from parrot_mq.store import ProducerStore, Reader
from parrot_mq.store.partition import Partition
from parrot_mq.store.records import RequestRecord, TokenPiece
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.worker.follow import Follow
from parrot_workers.worker.run import Run
from parrot_workers.worker.stepper import Stepper, monotonic_s
from parrot_workers.worker.table import RunTable
from parrot_workers.worker.transcript import Transcript

log = logging.getLogger(__name__)

MAX_FOLLOWS = 32
"""Values that are followed at once; of one more only the known beginning is computed."""
IDLE_S = 120.0
"""A value of which nothing has come for this long is given up."""
RECHECK_S = 1.0
"""How often it is looked where the value is being made, while it is not known."""
BLOCK_MS = 500
"""How long one read of a stream waits: a follow that is to end looks this often."""


class StreamedPrefills:
    """The values that are followed. Owned by the worker's event loop; ``follow`` runs as long as there is one.

    A value is tapped where it is made in this very worker (``note`` says when there is more of it), and read from its
    variable's stream where it is made elsewhere. ``engine_id``, ``model`` and ``identity`` return this engine's id, its
    public name, and its ``model@tokenizer_digest``.
    """

    def __init__(
        self,
        stepper: Stepper,
        table: RunTable,
        engine_id: Callable[[], str],
        model: Callable[[], str],
        identity: Callable[[], str],
    ) -> None:
        self._stepper = stepper
        self._table = table
        self._engine_id = engine_id
        self._model = model
        self._identity = identity
        self._follows: dict[str, Follow] = {}
        self._by_variable: dict[str, list[Follow]] = {}
        self._by_prefill: dict[str, Follow] = {}
        self._num_prefills = 0
        self._closed = False
        self.block_size = 1
        """The engine's; it is given a block's worth of tokens at once, or more."""

    def __len__(self) -> int:
        """Values that are followed."""
        return len(self._follows)

    def note(self, variable: str) -> None:
        """Something happened to the run that makes ``variable``."""
        for follow in self._by_variable.get(variable, ()):
            follow.fresh.set()

    def advance(self, output: SequenceOutput) -> None:
        """Take what the engine says of a prefill; what it says of others is ignored."""
        if output.finish is None or (follow := self._by_prefill.pop(output.id, None)) is None:
            return
        follow.outstanding = ""
        if output.finish is FinishReason.INVALID:  # longer than the model takes, for instance: it will not get better
            follow.ended = True
        follow.fresh.set()

    def end(self, key: str) -> None:
        """Follow no more for a hint's key; unknown ones are ignored."""
        if (follow := self._follows.get(key)) is not None:
            self._end(follow)

    def close(self) -> None:
        """Follow nothing more, now and later."""
        self._closed = True
        for follow in self._follows.values():
            self._end(follow)

    async def follow(
        self, partition: Partition, key: str, variable: str, prefix: tuple[PromptSegment, ...], salt: str
    ) -> None:
        """Have ``prefix`` computed, and behind it the value of ``variable`` as it comes; return when that has ended.

        Another one of the same key is ended. Never raises for what may happen to the value, or to Redis.
        """
        if self._closed or not self._stepper.takes_hints:
            return
        self.end(key)
        follow = Follow(key, variable, partition, prefix, salt, monotonic_s() + IDLE_S)
        if len(self._follows) >= MAX_FOLLOWS and key not in self._follows:
            log.info("only the beginning of %s is computed ahead: too many values are being followed", key)
            self._begin(follow)
            self._by_prefill.pop(follow.outstanding, None)
            return
        self._follows[key] = follow
        self._by_variable.setdefault(variable, []).append(follow)
        try:
            self._begin(follow)
            await self._watch(follow)
        except (ParrotError, RedisError, OSError) as error:
            log.warning("variable %s is followed no more for %s: %s", variable, key, error)
        finally:
            self._forget(follow)

    def _forget(self, follow: Follow) -> None:
        if self._follows.get(follow.key) is follow:
            del self._follows[follow.key]
        self._by_variable[follow.variable].remove(follow)
        if not self._by_variable[follow.variable]:
            del self._by_variable[follow.variable]
        if follow.outstanding and follow.is_over:
            self._end(follow)
        self._by_prefill.pop(follow.outstanding, None)

    def _end(self, follow: Follow) -> None:
        """Have a follow end, and at once what the engine is doing for it."""
        follow.ended = True
        follow.fresh.set()
        if follow.outstanding:
            del self._by_prefill[follow.outstanding]
            self._stepper.abort(follow.outstanding)
            follow.outstanding = ""

    # Where the value is made ------------------------------------------------------------------------------------------

    async def _watch(self, follow: Follow) -> None:
        """Go wherever the value is made, until it is complete, or is not to be followed any more."""
        is_ours = partition_of(follow.variable, "v") == follow.partition.keys.partition
        going_on = True
        while going_on and not follow.is_over:
            run = self._table.of_output(follow.variable)
            if run is not None:
                going_on = await self._tap(follow, run)
            else:
                going_on = is_ours and await self._look(follow)

    async def _look(self, follow: Follow) -> bool:
        """Find out where the value is, or read it from where it is made; False: there is nothing more to follow."""
        reader = Reader(follow.partition)
        record = await reader.variable(follow.variable)
        if record is None or record.state is VariableState.ERROR:
            return False
        if record.state is VariableState.READY:
            if record.tokens_by == self._identity() and record.token_ids:
                await self._complete(follow, record.token_ids, record.value or "")
            return False
        producer = await reader.request(record.producer) if record.producer else None
        spec = _spec_of(producer)
        if producer is None or spec is None or spec.transform is not None:
            return False
        if producer.engine in ("", self._engine_id()):  # not given to any engine yet, or on its way to this one
            await self._pause(follow)
            return True
        return await self._is_alike(reader, producer) and await self._read(follow, spec.sampling.stop)

    async def _is_alike(self, reader: Reader, producer: RequestRecord) -> bool:
        """Whether the engine that makes the value has this one's model: else its ids are others."""
        engine = await reader.engine(producer.engine)
        return engine is not None and engine.model == self._model()

    async def _tap(self, follow: Follow, run: Run) -> bool:
        """Take a value from the run that makes it here; False: it is complete, or not what its reader will see."""
        if run.spec.transform is not None:
            return False
        while run.in_engine and not run.dropped and not follow.is_over:
            self._offer(follow, run.transcript, run.spec.sampling.stop)
            await self._pause(follow)
        outcome = run.outcome
        if outcome is None or outcome.finish is FinishReason.ABORTED:
            if not follow.is_over:  # it was lost, or is retried: look where it goes
                await self._pause(follow)
            return True
        if outcome.finish is not FinishReason.INVALID and outcome.full_token_ids and self._identity():
            await self._complete(follow, outcome.full_token_ids, outcome.full_text)
        return False

    async def _read(self, follow: Follow, stop: tuple[str, ...]) -> bool:
        """Take a value from its variable's stream, which is asked for; False: it went another way than was read."""
        if not await ProducerStore(follow.partition).want(follow.variable, stream=True):
            return False
        reader, transcript, after = Reader(follow.partition), Transcript(), "0"
        checked_s = monotonic_s()
        while not follow.is_over and self._table.of_output(follow.variable) is None:
            pieces = await reader.next_pieces(follow.variable, after, block_ms=BLOCK_MS)
            if not pieces and monotonic_s() > checked_s + RECHECK_S:
                checked_s = monotonic_s()
                if await reader.states([follow.variable]) != [VariableState.PENDING]:
                    return True
            for piece in pieces:
                if piece.last:
                    return True
                if not _append(transcript, piece):
                    return False
            if pieces:
                after = pieces[-1].entry_id
                follow.num_sent = min(follow.num_sent, len(transcript.token_ids))
            self._offer(follow, transcript, stop)
        return True

    async def _pause(self, follow: Follow) -> None:
        """Wait until something happens, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_S):
                await follow.fresh.wait()
        follow.fresh.clear()

    # What the engine is given -----------------------------------------------------------------------------------------

    def _begin(self, follow: Follow) -> None:
        """Have what stands before the value computed, if anything does."""
        if follow.prefix:
            self._prefill(follow, (), "")

    def _offer(self, follow: Follow, transcript: Transcript, stop: tuple[str, ...]) -> None:
        """Have what is certain of a value computed, if it is a block more than before and the engine has done that."""
        count = transcript.num_certain(stop)
        if follow.outstanding or follow.is_over or count - follow.num_sent < self.block_size:
            return
        self._prefill(follow, transcript.token_ids[:count], transcript.text)

    async def _complete(self, follow: Follow, token_ids: Sequence[int], text: str) -> None:
        """Have the whole value computed, once the engine has done what it was given before."""
        while follow.outstanding and not follow.is_over:
            await self._pause(follow)
        if not follow.is_over and len(token_ids) != follow.num_sent:
            self._prefill(follow, token_ids, text)

    def _prefill(self, follow: Follow, token_ids: Sequence[int], text: str) -> None:
        value = (PromptSegment(text, is_value=True, token_ids=tuple(token_ids)),) if token_ids else ()
        self._num_prefills += 1
        follow.outstanding = f"follow {follow.key} {self._num_prefills}"
        follow.num_sent = len(token_ids)
        follow.deadline_s = monotonic_s() + IDLE_S
        self._by_prefill[follow.outstanding] = follow
        self._stepper.prefill(
            SequenceInput(follow.outstanding, follow.prefix + value, SamplingParams(), salt=follow.salt)
        )


def _spec_of(request: RequestRecord | None) -> RequestSpec | None:
    """Return what a request is made of; None if it has ended, or makes no sense."""
    if request is None or not request.spec_json:
        return None
    try:
        return RequestSpec.from_json(request.spec_json)
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # whoever claims it says so


def _append(transcript: Transcript, piece: TokenPiece) -> bool:
    """Add a piece of a stream; False: it does not go on from what was read.

    An attempt that runs again may repeat tokens, or say others from some place on.
    """
    if piece.offset > len(transcript.token_ids) or not transcript.cut(piece.offset):
        return False
    transcript.extend(piece.token_ids, piece.text)
    return True
