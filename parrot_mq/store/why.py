"""Asking the leading scheduler why requests sit where they do, and its answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

from parrot_mq.errors import Overloaded
from parrot_mq.keys import LEADER, partition_of
from parrot_mq.messages import Standing
from parrot_mq.store.answers import checked
from parrot_mq.store.connect import Store
from parrot_mq.store.partition import Partition

QUESTION_TTL_S = 2.0
"""How long a question and its answer live: an answer is never older than this."""
ANSWER_WITHIN_S = 1.0
POLL_S = 0.01
MAX_REQUESTS = 64
"""Requests in one question to a partition."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What the scheduler said, by request. ``note`` says why there is no (whole) answer, "" if there is."""

    leader: str
    standings: dict[str, Standing]
    note: str = ""


async def ask(store: Store, requests: Iterable[str], within_s: float = ANSWER_WITHIN_S) -> Answers:
    """Ask the leading scheduler about unfinished requests; waits for it up to ``within_s``, and not at all where
    nobody leads. What it does not know (any more) is missing in the answer.
    """
    by_partition: defaultdict[int, list[str]] = defaultdict(list)
    for request in dict.fromkeys(requests):
        by_partition[partition_of(request)].append(request)
    leader = await store.partitions[0].robust(lambda: store.client.get(LEADER))
    if not leader:
        return Answers("", {}, "no scheduler leads: start one with `parrot-mq scheduler`")
    found: dict[str, Standing] = {}
    deadline = asyncio.get_running_loop().time() + within_s
    try:
        for number, ids in by_partition.items():
            partition = store.partition(number)
            for start in range(0, len(ids), MAX_REQUESTS):
                checked(await partition.call("why", round(QUESTION_TTL_S * 1000), *ids[start : start + MAX_REQUESTS]))
        for number, ids in by_partition.items():
            found |= await _answers(store.partition(number), ids, deadline)
    except Overloaded as error:
        return Answers(leader, found, f"the scheduler could not be asked: {error}")
    except TimeoutError:
        return Answers(leader, found, f"{leader} leads, but has not answered within {within_s:g} s")
    return Answers(leader, found)


async def _answers(partition: Partition, ids: Sequence[str], deadline: float) -> dict[str, Standing]:
    """Wait for the answers; raises ``TimeoutError`` at ``deadline`` (of the loop's clock)."""
    keys = [partition.keys.why(request) for request in ids]
    while True:
        texts: list[str | None] = await partition.robust(lambda: partition.redis.mget(keys))
        if all(texts):
            standings = [Standing.from_json(text) for text in texts if text and text != UNKNOWN]
            return {standing.request: standing for standing in standings}
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError
        await asyncio.sleep(POLL_S)


UNKNOWN = "unknown"
"""The answer for a request that the scheduler does not have in its graph: it is finished, or never was."""


async def answer(partition: Partition, standings: dict[str, Standing | None]) -> None:
    """Answer to those who ask, where they still do."""

    async def run() -> None:
        async with partition.redis.pipeline(transaction=False) as pipe:
            for request, standing in standings.items():
                text = UNKNOWN if standing is None else standing.to_json()
                pipe.set(partition.keys.why(request), text, xx=True, keepttl=True)
            await pipe.execute()

    await partition.robust(run)
