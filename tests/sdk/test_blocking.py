from __future__ import annotations

import threading
from typing import NamedTuple

import pytest

import parrot_mq
import parrot_mq.sync as P

pytestmark = pytest.mark.redis


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@P.SemanticFunction
def reference(text: P.SemanticVariable):  # type: ignore[no-untyped-def]
    """{{input:text}}={{output:out}}"""


class Pair(NamedTuple):
    a: P.SemanticVariable
    b: P.VariableList


@P.semantic_function(returns=Pair)
def pair(text: P.Input, a: P.Output = P.output(), b: P.Output = P.output(n=2)) -> None:
    """{{text}}:{{a}}:{{b}}"""


@parrot_mq.semantic_function
def shared(text: parrot_mq.Input, out: parrot_mq.Output = parrot_mq.output()) -> None:
    """{{text}}!{{out}}"""


def test_a_synchronous_program(served_url: str) -> None:
    with P.connect(served_url, tenant="acme") as client, client.session() as session:
        task = session.variable("a game", name="task")
        code = step(task)
        test = reference(code)
        assert test.get(perf=P.LATENCY, timeout_s=20) == "<reference.out:13>"
        assert "".join(code.stream()) == code.get() == "<step.out:7>"
        assert (task.name, task.state(), session.tenant) == ("task", P.VariableState.READY, "acme")
        assert code.explain().reason == "it is ready"
        assert code.id in repr(code)
        producer = code.producer()
        assert producer is not None
        assert producer.function == "step"
        assert {info.output for info in code.consumers()} == {test.id}
        assert len(code.prefix_hash()) == 1
        assert test.objective() == P.LATENCY
        theirs = client.variable(code.published())
        assert theirs.get(timeout_s=20) == code.get()
        assert set(session.variables()) >= {task.id, code.id}


def test_several_outputs_and_lists(served_url: str) -> None:
    with P.connect(served_url) as client, client.session():
        outputs = pair("x")
        assert isinstance(outputs, Pair)
        assert len(outputs.b.get(timeout_s=20)) == 2
        many = P.map(step, ["a", "bb"])
        assert P.gather(many, outputs.a, timeout_s=20) == ["<step.out:2>", "<step.out:3>", "<pair.a:2>"]
        assert many[1:].get() == ["<step.out:3>"]
        assert many[0] in list(P.first(2, many))
        assert P.gather() == []
        assert P.VariableList([]).cancel() == 0


def test_set_and_cancel(served_url: str) -> None:
    with P.connect(served_url) as client:
        with client.session() as session:
            by_hand = P.SemanticVariable(name="later")
            out = step(by_hand)
            assert by_hand.id.startswith("0-v-")
            by_hand.set("now")
            assert out.get(timeout_s=20) == "<step.out:4>"
            never = session.variable()
            assert never.cancel("not needed")
            with pytest.raises(P.Cancelled, match="not needed"):
                never.get()
            waits = P.map(step, [session.variable(), session.variable()])
            assert waits.cancel() == 2
            with pytest.raises(P.NeverSet):
                session.variable().get(timeout_s=0.1)
            session.flush()
            session.close()
            with pytest.raises(P.SessionClosed):
                step("x").get()
        with client.session() as session:
            step(session.variable())
            assert session.cancel() == 1
            session.delete()


def test_functions_of_the_asynchronous_sdk(served_url: str) -> None:
    with P.connect(served_url) as client, client.session():
        out: object = shared("x")
        assert isinstance(out, P.SemanticVariable)
        assert out.get(timeout_s=20) == "<shared.out:2>"
        made = P.SemanticFunction.from_template("{{x}}?{{output:y}}", name="made")
        assert made(out).get(timeout_s=20) == "<made.y:15>"


def test_sessions_are_needed_or_given(served_url: str) -> None:
    with pytest.raises(P.ConfigError, match="step needs a session"):
        step("x")
    with pytest.raises(P.ConfigError, match="needs a session"):
        P.SemanticVariable("x").get()
    with P.connect(served_url) as client, client.session() as outer, client.session() as inner:
        assert step("x", session=outer).inner.session is outer.inner  # type: ignore[call-arg]
        assert step("x").inner.session is inner.inner
        results: list[str] = []
        thread = threading.Thread(target=lambda: results.append(step("x", session=outer).get()))  # type: ignore[call-arg]
        thread.start()
        thread.join()
        assert results == ["<step.out:2>"]
    with pytest.raises(P.ConfigError, match="not connected"):
        client.session()
    with pytest.raises(P.StoreUnavailable), P.connect("redis://127.0.0.1:1"):
        pass


def test_errors_of_a_block_are_raised(served_url: str) -> None:
    with P.connect(served_url) as client:
        with pytest.raises(P.UnknownVariable, match="nobody"), client.session():
            step(client.variable("0-v-nobody"))
        with pytest.raises(KeyError), client.session():
            raise KeyError


def test_blocking_on_the_loop_itself_is_an_error(served_url: str) -> None:
    with P.connect(served_url) as client, client.session() as session:
        variable = session.variable("x")
        with pytest.raises(P.ConfigError, match="event loop itself"):
            session.portal.call(variable.get)
        portal = session.portal
    with pytest.raises(P.ConfigError, match="closed"):
        portal.call(lambda: None)
    portal.close()


def test_the_virtual_machine(served_url: str) -> None:
    machine = P.VirtualMachine(served_url, tenant="acme")

    def program(text: str) -> str:
        return step(shared(text)).get(timeout_s=20)  # type: ignore[arg-type]

    async def asynchronous(text: str) -> str:
        return await shared(text).get(timeout_s=20)

    assert machine.run(program, "x") == "<step.out:15>"
    assert machine.run(asynchronous, "x") == "<shared.out:2>"
    with machine.running_scope() as session:
        assert session.tenant == "acme"
        assert step("x").get(timeout_s=20) == "<step.out:2>"
    with pytest.raises(ZeroDivisionError):
        machine.run(lambda: 1 // 0)


def test_the_names_are_those_of_the_asynchronous_sdk() -> None:
    assert set(P.__all__) == set(parrot_mq.__all__)
    for name in P.__all__:
        assert getattr(P, name, None) is not None, name
