"""Single-flight: equal deterministic requests of a tenant that run here at the same time share one sequence."""

from __future__ import annotations

import dataclasses

import orjson

from parrot_mq.messages import ObjectiveKind, SamplingParams
from parrot_workers.engine.port import PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.worker.run import Run
from parrot_workers.worker.stepper import Stepper
from parrot_workers.worker.transcript import Transcript

MAX_FOLLOWERS = 512
"""Runs beyond the first of each sequence; one more runs by itself. They end together, and their outcomes wait for Redis
together."""

_STRICTNESS = {kind: index for index, kind in enumerate(ObjectiveKind)}
"""ObjectiveKind goes from the least to the most strict."""


@dataclasses.dataclass(frozen=True, slots=True)
class FlightKey:
    """What makes two sequences equal: token for token the same prompt, sampled alike, of one tenant.

    An engine has one model and one tokenizer, so that neither is part of it. ``salt`` is: whoever shares prefixes with
    other tenants still shares no output with them.
    """

    tenant: str
    salt: str
    segments: tuple[PromptSegment, ...]
    sampling: bytes


def flight_key(tenant: str, sequence: SequenceInput) -> FlightKey | None:
    """Return what equal sequences of a tenant have in common; None if the next one may come out otherwise."""
    if not is_deterministic(sequence.sampling):
        return None
    sampling = orjson.dumps(sequence.sampling.to_dict(), option=orjson.OPT_SORT_KEYS)
    return FlightKey(tenant, sequence.salt, sequence.segments, sampling)


def is_deterministic(sampling: SamplingParams) -> bool:
    """Whether the same prompt gives the same output: greedy, or with a seed of its own."""
    return sampling.greedy or sampling.seed is not None


@dataclasses.dataclass(slots=True, eq=False)
class Flight:
    """One sequence in the engine, and the runs whose output it is; the first of them leads."""

    id: str
    """The sequence's id: that of the attempt which began it, even when that has left."""
    key: FlightKey | None
    objective: ObjectiveKind
    """What the engine was told; the strictest of the members'."""
    transcript: Transcript
    members: dict[Run, None]

    @property
    def strictest(self) -> ObjectiveKind:
        """The strictest objective of its members, of whom there must be one."""
        return max((run.objective for run in self.members), key=_STRICTNESS.__getitem__)


class Flights:
    """The sequences of one engine, by id. Owned by the worker's event loop.

    A run that may share joins a flight of its key, and is told everything that was said so far; it has no sequence of
    its own. A member that is cancelled, lost or fenced out leaves alone: the sequence goes on for the others, and is
    aborted when the last one has left. So whoever is first of those that stay leads from then on, without a token being
    computed twice. ``is_on``: whether runs are shared at all.
    """

    def __init__(self, stepper: Stepper, *, is_on: bool) -> None:
        self._stepper = stepper
        self._is_on = is_on
        self._flights: dict[str, Flight] = {}
        self._by_key: dict[FlightKey, Flight] = {}
        self._of: dict[Run, Flight] = {}
        self._aborted: set[str] = set()
        """Sequences that the engine has not ended yet."""
        self._num_named = 0

    def __len__(self) -> int:
        """Sequences in the engine."""
        return len(self._flights)

    @property
    def num_followers(self) -> int:
        """Runs that take no slot of the engine."""
        return len(self._of) - len(self._flights)

    def of(self, run: Run) -> Flight | None:
        """Return the flight of a run that has begun in the engine."""
        return self._of.get(run)

    def board(self, run: Run, sequence: SequenceInput) -> None:
        """Have ``run`` get the output of ``sequence``: from a flight that is under way, or from one of its own."""
        key = flight_key(run.claim.tenant, sequence) if self._is_on and run.plan.flight != "" else None
        flight = self._by_key.get(key) if key is not None else None
        if flight is not None and self._may_join(run, flight):
            run.transcript = flight.transcript
            self._of[run] = flight
            flight.members[run] = None
            self._tell_objective(flight)
            return
        sequence = dataclasses.replace(sequence, id=self._free_id(sequence.id))
        flight = Flight(sequence.id, key, sequence.objective, run.transcript, {run: None})
        self._flights[sequence.id] = self._of[run] = flight
        if key is not None:
            self._by_key[key] = flight
        self._stepper.add(sequence)

    def advance(self, output: SequenceOutput) -> list[Run]:
        """Take what the engine said; return whose output it is. A sequence that has ended is forgotten."""
        if output.finish is not None:
            self._aborted.discard(output.id)
        flight = self._flights.get(output.id)
        if flight is None:
            return []
        flight.transcript.add(output)
        members = list(flight.members)
        if output.finish is not None:
            self._forget(flight)
            for run in members:
                del self._of[run]
                run.shared = run is not members[0]
        return members

    def leave(self, run: Run) -> None:
        """Take a run out; the others go on, and with the last one the sequence ends. Unknown ones are ignored."""
        flight = self._of.pop(run, None)
        if flight is None:
            return
        del flight.members[run]
        if flight.members:
            self._tell_objective(flight)
            return
        self._forget(flight)
        self._aborted.add(flight.id)
        self._stepper.abort(flight.id)

    def set_objective(self, run: Run, objective: ObjectiveKind) -> None:
        """Give a run another objective: its sequence has the strictest of all that share it."""
        run.objective = objective
        if (flight := self._of.get(run)) is not None:
            self._tell_objective(flight)

    def _may_join(self, run: Run, flight: Flight) -> bool:
        """Whether what ``run`` has published, if anything, is how the flight began, and there is room."""
        return self.num_followers < MAX_FOLLOWERS and flight.transcript.begins_with(run.claim.published_ids)

    def _tell_objective(self, flight: Flight) -> None:
        if flight.strictest is not flight.objective:
            flight.objective = flight.strictest
            self._stepper.set_objective(flight.id, flight.objective)

    def _forget(self, flight: Flight) -> None:
        del self._flights[flight.id]
        if flight.key is not None and self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def _free_id(self, wanted: str) -> str:
        """Return an id that no sequence of the engine has: an attempt may come back while its sequence serves others,
        or before the engine has said that it is over.
        """
        if wanted not in self._flights and wanted not in self._aborted:
            return wanted
        self._num_named += 1
        return f"{wanted}~{self._num_named}"
