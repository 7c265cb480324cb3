"""From a run to the sequence that is its: its prompt is put together, and it boards a flight."""

from __future__ import annotations

from collections.abc import Callable

from parrot_mq.errors import InvalidRequest
from parrot_mq.messages import FunctionRecord
from parrot_workers.engine.port import SequenceInput
from parrot_workers.worker.flights import Flights
from parrot_workers.worker.prompt import FunctionCache, fetch_inputs, prefix_salt, prompt_segments
from parrot_workers.worker.run import Run


class Submitter:
    """Hands runs to the engine. ``identity`` returns the engine's ``model@tokenizer_digest``."""

    def __init__(self, flights: Flights, identity: Callable[[], str]) -> None:
        self._flights = flights
        self._identity = identity
        self.functions = FunctionCache()

    def submit_at_once(self, run: Run) -> bool:
        """Hand ``run`` to the engine if all that its prompt needs is here; False: ``submit`` must fetch the rest.

        Raises ``InvalidRequest`` if the template and the request do not fit together.
        """
        function = self.functions.peek(run.claim.tenant, run.spec.function)
        if function is None or any(value.text is None for value in run.claim.inputs):
            return False
        self._add(run, function, {value.id: value.text or "" for value in run.claim.inputs})
        return True

    async def submit(self, run: Run) -> None:
        """Fetch what the prompt of ``run`` needs and hand it to the engine.

        Raises ``InvalidRequest`` if the template or a value is gone.
        """
        claim, spec = run.claim, run.spec
        function = await self.functions.get(run.store, claim.tenant, spec.function)
        if function is None:
            raise InvalidRequest(
                f"the template {spec.function} of {spec.function_name} is gone from tenant {claim.tenant!r}; "
                "submit the call again"
            )
        texts = await fetch_inputs(run.store, claim)
        if run.in_engine and not run.dropped:
            self._add(run, function, texts)

    def _add(self, run: Run, function: FunctionRecord, texts: dict[str, str]) -> None:
        inputs = {value.id: value for value in run.claim.inputs}
        segments = prompt_segments(run.spec, function, inputs, texts, self._identity())
        self._flights.board(
            run,
            SequenceInput(
                id=run.id,
                segments=segments,
                sampling=run.spec.sampling,
                objective=run.objective,
                rank=run.plan.rank,
                salt=prefix_salt(run.claim.tenant, share_prefixes=run.spec.share_prefixes),
                forced_ids=run.claim.published_ids,
                group=run.plan.group,
                group_size=run.plan.group_size,
            ),
        )
