"""Random histories of one partition: whatever is done in whatever order, nothing is lost, stuck or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import fakeredis
import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from parrot_mq.errors import AlreadyProduced, AlreadySet, CycleError, Fenced, SubmitError
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.ids import SeededIds
from parrot_mq.store.records import Assignment, NewVariable
from tests.store.lab import FAILURE, Lab

T = TypeVar("T")
ENGINES = ("e0", "e1")
SETTINGS = StoreSettings(
    fanout_units=3, max_attempts=2, max_undispatches=3,
    heartbeat_ttl_s=3600, lease_s=3600, backoff_base_s=3600, backoff_max_s=3600,
)  # fmt: skip
"""Nothing happens by itself: leases, heartbeats and back-offs end when a rule says so."""
FINISHED = {"done", "dead", "cancelled"}
pick = st.integers(min_value=0, max_value=10**6)


class Pipeline(RuleBasedStateMachine):
    """Draws actions of every role. What each must answer follows from the state before it; the invariants follow from
    the whole keyspace. ``outcomes`` is the model's memory of variables: the first outcome seen is the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        server = fakeredis.FakeServer()
        self.redis = fakeredis.FakeRedis(server=server, decode_responses=True)
        client = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
        self.store: Store = self.run(connect("redis://fake", SETTINGS, ids=SeededIds(1), client=client))
        self.lab = Lab(self.store)
        self.sessions: list[str] = []
        self.variables: list[str] = []
        self.requests: dict[str, tuple[str, tuple[str, ...], str]] = {}
        """id -> session, inputs, output."""
        self.held: dict[tuple[str, str], Assignment] = {}
        """What engines have received, by (request, fence); never forgotten, so that zombies act as well."""
        self.outcomes: dict[str, tuple[str, str]] = {}

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self.redis.close()
        self.loop.close()

    def run(self, action: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(action)

    def refused_with(self, action: Coroutine[Any, Any, None]) -> type[Exception] | None:
        """Run ``action``; return the type of the error that it was refused with."""
        try:
            self.run(action)
        except (SubmitError, Fenced) as error:
            return type(error)
        return None

    def request(self, request: str) -> dict[str, str]:
        return self.redis.hgetall(self.lab.keys.request(request))

    def variable(self, variable: str) -> dict[str, str]:
        return self.redis.hgetall(self.lab.keys.variable(variable))

    def any_request(self, number: int) -> str:
        return list(self.requests)[number % len(self.requests)]

    @initialize()
    def open(self) -> None:
        self.sessions = [self.run(self.lab.session()) for _ in range(2)]
        for engine in ENGINES:
            self.run(self.lab.heartbeat(engine))
        self.submit([0, 1], False, 0)

    # What producers do

    @rule(inputs=st.lists(pick, max_size=4), into_old=st.booleans(), number=pick)
    def submit(self, inputs: list[int], into_old: bool, number: int) -> None:
        """A request that reads old variables (or a new unset one) into a new or an old one, and a reader of it."""
        session = self.sessions[number % 2]
        fresh = [NewVariable(self.lab.id("v"), "x") for _ in range(3)]
        reads = [self.variables[i % len(self.variables)] for i in inputs] if self.variables else [fresh[0].id]
        own = [v for v in self.variables if self.variable(v)["session"] == session]
        output = own[number % len(own)] if into_old and own else fresh[1].id
        first = self.lab.request(reads, output)
        second = self.lab.request([output, *reads[:1]], fresh[2].id)
        expected = self.refusal(tuple(reads), output)
        before = self.run(self.lab.snapshot())
        submit = self.lab.submit(session, fresh, [first, second], batch=self.lab.store.ids.token())
        assert self.refused_with(submit) is expected
        if expected:
            assert self.run(self.lab.snapshot()) == before
            return
        self.variables += [variable.id for variable in fresh]
        for spec, ids in (first, second):
            self.requests[spec.id] = (session, tuple(dict.fromkeys(ids)), spec.output)

    def refusal(self, reads: tuple[str, ...], output: str) -> type[Exception] | None:
        if output in reads:
            return CycleError
        fields = self.variable(output)
        if fields.get("producer"):
            return AlreadyProduced
        if fields.get("state", "pending") != "pending":
            return AlreadySet
        reached, stack = set(), [output]
        while stack:
            variable = stack.pop()
            for name, (_, inputs, result) in self.requests.items():
                waits = self.redis.zscore(f"{self.lab.keys.variable(variable)}:wait", name) is not None
                if variable in inputs and waits and result not in reached:
                    reached.add(result)
                    stack.append(result)
        pending = {v for v in reads if self.variable(v).get("state", "pending") == "pending"}
        return CycleError if reached & pending else None

    @rule(number=pick, text=st.sampled_from(["a", "b"]))
    def set_variable(self, number: int, text: str) -> None:
        variable = self.variables[number % len(self.variables)]
        before = self.variable(variable)
        expected: type[Exception] | None = None
        if before["state"] != "pending":
            expected = None if before.get("value") == text else AlreadySet
        elif before.get("producer"):
            expected = AlreadyProduced
        assert self.refused_with(self.lab.producer.set_variable(variable, self.lab.value(text))) is expected
        after = self.variable(variable)
        assert after == before if expected else after["value"] == text

    @rule(number=pick)
    def cancel_request(self, number: int) -> None:
        request = self.any_request(number)
        live = self.request(request)["state"] not in FINISHED
        assert self.run(self.lab.producer.cancel_requests([request])) == int(live)
        assert self.request(request)["state"] in ({"cancelled"} if live else FINISHED)

    @rule(number=pick)
    def cancel_variable(self, number: int) -> None:
        variable = self.variables[number % len(self.variables)]
        pending = self.variable(variable)["state"] == "pending"
        assert self.run(self.lab.producer.cancel_variable(variable)) == int(pending)
        assert self.variable(variable)["state"] != "pending"

    # What the scheduler does

    @rule(number=pick, engine=st.sampled_from(ENGINES))
    def dispatch(self, number: int, engine: str) -> None:
        request = self.any_request(number)
        ready = self.request(request)["state"] == "ready" and self.redis.exists(self.lab.keys.engine(engine))
        assert bool(self.run(self.lab.dispatch(request, engine))) is bool(ready)

    @rule(engine=st.sampled_from(ENGINES))
    def dispatch_all(self, engine: str) -> None:
        for request in self.requests:
            self.run(self.lab.dispatch(request, engine))

    @rule()
    def propagate(self) -> None:
        self.run(self.lab.scheduler.propagate())

    @rule(leases=st.booleans(), number=pick)
    def reap(self, leases: bool, number: int) -> None:
        key = self.lab.keys.leases if leases else self.lab.keys.delayed
        names = self.redis.zrange(key, 0, -1)
        for name in names[: number % 3]:
            self.redis.zadd(key, {name: 1})
        self.run(self.lab.scheduler.reap())

    @rule(engine=st.sampled_from(ENGINES), told=st.booleans())
    def lose_engine(self, engine: str, told: bool) -> None:
        self.run(self.lab.kill_engine(engine))
        running = [r for r in self.requests if self.request(r).get("engine") == engine] if told else []
        self.run(self.lab.scheduler.reap_engine(engine, running))
        assert not any(
            self.request(r)["state"] == "queued" and self.request(r)["engine"] == engine for r in self.requests
        )

    # What engines do

    @rule(engine=st.sampled_from(ENGINES))
    def come_back(self, engine: str) -> None:
        self.run(self.lab.heartbeat(engine))

    @rule(engine=st.sampled_from(ENGINES), claim=st.booleans())
    def receive(self, engine: str, claim: bool) -> None:
        self.run(self.lab.heartbeat(engine))
        assignments = self.run(self.lab.receive(engine))
        self.held.update({(a.request, a.fence): a for a in assignments})
        if claim and assignments:
            claims = self.run(self.lab.engine.start(engine, assignments))
            assert [bool(c) for c in claims] == [self.mine((a.request, a.fence), "running") for a in assignments]

    def any_held(self, number: int) -> tuple[str, str] | None:
        return list(self.held)[number % len(self.held)] if self.held else None

    def mine(self, held: tuple[str, str], *states: str) -> bool:
        fields = self.request(held[0])
        return fields["fence"] == held[1] and fields["state"] in states

    @rule(number=pick, twice=st.booleans())
    def start(self, number: int, twice: bool) -> None:
        if held := self.any_held(number):
            expected = self.mine(held, "queued", "running")
            engine = self.request(held[0])["engine"] or "e0"
            for _ in range(1 + twice):
                (claim,) = self.run(self.lab.engine.start(engine, [self.held[held]]))
                assert (claim is not None) is expected
                assert claim is None or (claim.attempt <= 2 and claim.request == held[0])

    @rule(number=pick, twice=st.booleans())
    def complete(self, number: int, twice: bool) -> None:
        if held := self.any_held(number):
            expected = self.mine(held, "running", "done")
            for _ in range(1 + twice):
                refused = self.refused_with(self.lab.complete_as(*held, self.requests[held[0]][2]))
                assert refused is (None if expected else Fenced)

    @rule(number=pick, retry=st.booleans(), twice=st.booleans())
    def fail(self, number: int, retry: bool, twice: bool) -> None:
        if held := self.any_held(number):
            known = self.request(held[0]).get("last_failed") == held[1]
            expected = known or self.mine(held, "running", "queued")
            for _ in range(1 + twice):
                refused = self.refused_with(self.lab.engine.fail(*held, FAILURE, retry=retry))
                assert refused is (None if expected else Fenced)

    @rule(number=pick)
    def release(self, number: int) -> None:
        if held := self.any_held(number):
            mine = self.mine(held, "running", "queued")
            before = self.request(held[0])
            self.run(self.lab.engine.release("e0", [held]))
            after = self.request(held[0])
            assert after == before if not mine else after["state"] in ("ready", "dead")

    # What must hold

    @invariant()
    def variables_are_set_once(self) -> None:
        for variable in self.variables:
            fields = self.variable(variable)
            outcome = (fields["state"], fields.get("value", "") + fields.get("error", ""))
            assert self.outcomes.setdefault(variable, outcome) == outcome or self.outcomes[variable][0] == "pending"
            self.outcomes[variable] = outcome

    @invariant()
    def outputs_follow_their_requests(self) -> None:
        for name, (_, _, output) in self.requests.items():
            state = self.request(name)["state"]
            assert self.variable(output)["state"] == {"done": "ready"}.get(
                state, "error" if state in FINISHED else "pending"
            )

    @invariant()
    def every_live_request_is_in_one_place(self) -> None:
        keys = self.lab.keys
        leases, delayed = (set(self.redis.zrange(key, 0, -1)) for key in (keys.leases, keys.delayed))
        queued = {
            (fields["request"], fields["fence"])
            for engine in ENGINES
            for _, fields in self.redis.xrange(keys.engine_queue(engine))
            if "request" in fields
        }
        unfinished = {entry["variable"] for _, entry in self.redis.xrange(keys.work)}
        told = self.told_ready()
        for name, (_, inputs, _) in self.requests.items():
            fields = self.request(name)
            state = fields["state"]
            assert (name in leases) is (state == "running")
            assert (name in delayed) is (state == "waiting" and fields["need"] == "0")
            assert ((name, fields["fence"]) in queued) is (state == "queued")
            if state == "ready":
                assert (name, fields["rev"]) in told
            if state == "waiting" and name not in delayed:
                waits = [v for v in inputs if self.redis.zscore(f"{keys.variable(v)}:wait", name) is not None]
                assert int(fields["need"]) == len(waits) > 0
                for variable in waits:
                    assert self.variable(variable)["state"] == "pending" or variable in unfinished
        assert all(any(pair == (n, self.request(n)["fence"]) for n in self.requests) for pair in queued)

    def told_ready(self) -> set[tuple[str, str]]:
        """(request, revision) pairs that the scheduler was told are ready."""
        told = set()
        for _, fields in self.redis.xrange(self.lab.keys.intake):
            told |= {tuple(pair.split(":")) for pair in fields.get("ready", "").split()}
            for entry in fields.get("states", "").split():
                name, rev, state = entry.split(":")
                if state == "ready":
                    told.add((name, rev))
        return told

    @invariant()
    def the_counts_are_right(self) -> None:
        live = {name for name in self.requests if self.request(name)["state"] not in FINISHED}
        assert set(self.redis.zrange(self.lab.keys.live, 0, -1)) == live
        for session in self.sessions:
            count = sum(1 for name in live if self.requests[name][0] == session)
            assert self.redis.hget(self.lab.keys.session(session), "live") == str(count)

    @invariant()
    def attempts_are_bounded(self) -> None:
        for name in self.requests:
            fields = self.request(name)
            assert 0 <= int(fields["attempt"]) <= SETTINGS.max_attempts
            assert int(fields.get("undispatches", 0)) <= SETTINGS.max_undispatches + 1


TestPipeline = Pipeline.TestCase
TestPipeline.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
