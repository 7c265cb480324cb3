"""How far a running application is, read from Redis while it runs: calls done, tokens worked through."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import orjson

import parrot_mq as P
from parrot_mq.store import Reader, Store

POLL_S = 0.5


@dataclasses.dataclass(slots=True)
class StageProgress:
    """One stage: ``total`` calls, of which ``num_done`` have an answer. Owned by its ``Monitor``."""

    name: str
    total: int
    num_done: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    pending: dict[str, P.SemanticVariable] = dataclasses.field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts and outputs of the calls that are done."""
        return self.num_prompt_tokens + self.num_output_tokens


class Monitor:
    """Watches stages. ``on_change`` is called with all of them after each look at Redis."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[tuple[str, int]],
        on_change: Callable[[Sequence[StageProgress]], None],
    ) -> None:
        self._store = store
        self._on_change = on_change
        self.stages = {name: StageProgress(name, total) for name, total in stages}

    def watch(self, stage: str, variable: P.SemanticVariable) -> None:
        """Watch the answer of a call that has been made."""
        self.stages[stage].pending[variable.id] = variable

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Look once: one round trip for the open calls of each stage, one for the usage of those that have ended."""
        for stage in self.stages.values():
            if stage.pending:
                await self._look(stage)
        self._on_change(list(self.stages.values()))

    async def _look(self, stage: StageProgress) -> None:
        ids = list(stage.pending)
        reader = Reader(self._store.of(ids[0]))
        records = await reader.variables(ids, values=False)
        ended = [record for record in records if record and record.state is not P.VariableState.PENDING]
        for request in await reader.requests([record.producer for record in ended if record.producer]):
            usage = orjson.loads(request.usage_json) if request and request.usage_json else {}
            stage.num_prompt_tokens += usage.get("num_prompt_tokens", 0)
            stage.num_output_tokens += usage.get("num_output_tokens", 0)
        for record in ended:
            del stage.pending[record.id]
        stage.num_done += len(ended)
