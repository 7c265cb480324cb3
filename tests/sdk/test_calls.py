from __future__ import annotations

import pytest

import parrot_mq as P
from parrot_mq.messages import RequestSpec, TransformKind
from parrot_mq.store import Store
from tests.sdk.fake_service import FakeService


@P.semantic_function
def write(task: P.Input, code: P.Output = P.output(max_tokens=20)) -> None:
    """Write {{task}}.
    Code:{{code}}"""


@P.semantic_function
def ask(
    topic: P.Input,
    facts: dict[str, int],
    idea: P.Output = P.output(max_tokens=5),
    plan: P.Output = P.output(transform=P.strip()),
    steps: P.Output = P.output(n=3, temperature=1.0, seed=7),
) -> None:
    """{{topic}} {{facts}}
    Idea:{{idea}}
    Plan:{{plan}}
    Again {{idea}}:{{steps}}"""


def specs(variable: P.SemanticVariable) -> RequestSpec:
    assert variable._request is not None
    return variable._request.spec


async def test_a_text_becomes_a_variable(session: P.Session, service: FakeService) -> None:
    code = write("a {{game}}", session=session)
    assert await code == "<write.code:23>"
    assert service.prompts[code.id] == "Write a {{game}}.\nCode:"
    assert service.specs[code.id].sampling.max_tokens == 20
    assert (code.name, code.session) == ("code", session)
    assert code.call is not None
    assert code.call.outputs == (code.id,)


async def test_several_outputs_are_several_requests(session: P.Session, service: FakeService) -> None:
    topic = session.variable("cats", name="topic")
    outputs = ask.using(session=session)(topic, {"n": 1})
    idea, plan, steps = outputs  # type: ignore[misc]  # a named tuple
    assert (outputs.idea, outputs.plan) == (idea, plan)  # type: ignore[attr-defined]
    assert len(steps) == 3
    assert specs(idea).raw_inputs == ()
    assert specs(plan).raw_inputs == (idea.id,)
    assert [specs(step).sampling.seed for step in steps] == [7, 8, 9]
    assert [specs(step).raw_inputs for step in steps] == [(idea.id, plan.id)] * 3
    assert len({specs(v).call for v in (idea, plan, *steps)}) == 1
    assert len({specs(v).id for v in (idea, plan, *steps)}) == 5
    plan_transform = specs(plan).transform
    assert plan_transform is not None
    assert plan_transform.kind is TransformKind.STRIP
    values = await steps.get(timeout_s=10)
    assert len(values) == 3
    shown = 'cats {\n  "n": 1\n}\nIdea:' + await idea
    assert service.prompts[plan.id] == shown + "\nPlan:"
    assert service.prompts[steps[2].id] == f"{shown}\nPlan:{await plan}\nAgain {await idea}:"


async def test_an_output_that_was_made_before(session: P.Session, service: FakeService) -> None:
    code = session.variable(name="later")
    following = write(code, session=session)
    assert write("x", code=code, session=session) is code
    assert await following.get(timeout_s=10) == f"<write.code:{len('Write ' + await code + '.' + 'Code:') + 1}>"
    with pytest.raises(P.AlreadySet, match="'code'"):
        write("y", code=code, session=session)


async def test_an_output_has_one_producer(session: P.Session) -> None:
    code = session.variable(name="later")
    write("x", code=code, session=session)
    with pytest.raises(P.AlreadyProduced, match="produced by write"):
        write("y", code=code, session=session)


async def test_unbound_variables_bind_to_the_session_of_the_call(session: P.Session, service: FakeService) -> None:
    task, code = P.SemanticVariable("cats", name="t"), P.SemanticVariable(name="c")
    write(task, code=code, session=session)
    assert task.session is session
    assert await code.get(timeout_s=10) == "<write.code:17>"


async def test_the_session_of_the_inputs_is_the_last_resort(session: P.Session, service: FakeService) -> None:
    assert write(session.variable("cats")).session is session
    async with session:
        assert write("dogs").session is session


@pytest.mark.parametrize("bad", [3, None, ["a"], b"text"])
async def test_a_bad_input_names_function_and_parameter(session: P.Session, bad: object) -> None:
    with pytest.raises(P.BadType, match="write: input 'task' must be a SemanticVariable or str"):
        write(bad, session=session)  # type: ignore[arg-type, call-arg]


async def test_bad_types(session: P.Session, client: P.Client) -> None:
    many = P.VariableList([session.variable("a")])
    with pytest.raises(P.BadType, match="join their values"):
        write(many, session=session)  # type: ignore[arg-type, call-arg]
    with pytest.raises(P.BadType, match="rendered as a Python object"):
        ask.using(session=session)("x", session.variable("y"))  # type: ignore[arg-type]
    with pytest.raises(P.BadType, match="output 'code' must be"):
        write.using(session=session)("x", "y")  # type: ignore[arg-type]
    with pytest.raises(P.BadType, match="lone surrogate") as caught:
        write("\udc80", session=session)  # type: ignore[call-arg]
    assert "argument 'task' of write" in caught.value.__notes__
    with pytest.raises(P.BadType, match="has n=3"):
        ask.using(session=session)("x", {}, steps=session.variable())
    with pytest.raises(P.BadType, match="SemanticVariable\\(value\\)"):
        P.SemanticVariable(3)  # type: ignore[arg-type]


async def test_formatters(session: P.Session, service: FakeService) -> None:
    @P.semantic_function(formatter=lambda value: f"[{value}]")
    def show(thing: object, out: P.Output) -> None:
        """{{thing}}:{{out}}"""

    out = show.using(session=session)(5)
    assert await out.get(timeout_s=10) == "<show.out:4>"
    assert service.prompts[out.id] == "[5]:"

    @P.semantic_function(formatter=lambda value: value)
    def wrong(thing: object, out: P.Output) -> None:
        """{{thing}}:{{out}}"""

    with pytest.raises(P.BadType, match="formatter returned int for 'thing'"):
        wrong.using(session=session)(5)


async def test_a_large_object_becomes_a_variable(session: P.Session, service: FakeService) -> None:
    text = "x" * 40_000
    plan = ask.using(session=session)("cats", text).plan  # type: ignore[attr-defined, arg-type]
    facts = specs(plan).bindings["facts"]
    assert facts.text is None
    assert await plan.get(timeout_s=10)
    assert text in service.prompts[plan.id]


async def test_models_and_priorities(client: P.Client, service: FakeService) -> None:
    session = await client.session(model="small").open()
    plain = write("x", session=session)
    assert (specs(plain).model, specs(plain).priority) == ("small", 0)
    other = write.using(session=session, model="large", priority=2)("x")
    assert (specs(other).model, specs(other).priority) == ("large", 2)
    await session.detach()


async def test_cancelling_a_call(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    outputs = ask.using(session=session)("cats", {})
    idea = outputs.idea  # type: ignore[attr-defined]
    assert idea.call is not None
    assert await idea.call.cancel() == 5
    with pytest.raises(P.Cancelled, match="cancelled by the application"):
        await outputs.steps[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("client_shares", [False, True])
async def test_who_consents_to_shared_prefixes(fake_store: Store, client_shares: bool) -> None:
    async with P.connect(store=fake_store, share_prefixes=client_shares) as client:
        for given, expected in ((None, client_shares), (False, False), (True, True)):
            async with client.session(share_prefixes=given) as session:
                code = write("a game")
                assert specs(code).share_prefixes is session.share_prefixes is expected


async def test_nobody_shares_prefixes_unasked(session: P.Session, service: FakeService) -> None:
    code = write("a game", session=session)
    await code
    assert service.specs[code.id].share_prefixes is False
    async with P.connect(store=session.link.store, share_prefixes=True) as client, client.session() as other:
        shared = write("a game", session=other)
        await shared
    assert service.specs[shared.id].share_prefixes is True
