"""The encoding that is made once for each output gives byte for byte what the plain one gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import parrot_mq as P
from parrot_mq.messages import (
    Binding,
    FunctionRecord,
    RequestForm,
    RequestSpec,
    SamplingParams,
    Segment,
    SegmentKind,
    Transform,
    TransformKind,
)
from parrot_mq.messages.form import bound_text, bound_variable
from parrot_mq.sdk.graph import Request

TEXTS = st.text(max_size=20)
TOKENS = st.text("0123456789abcdefghijklmnopqrstuvwxyz.", min_size=1, max_size=20)
VARIABLES = st.one_of(TOKENS, st.text(min_size=1, max_size=10)).map(lambda text: f"0-v-{text}")
BINDINGS = st.one_of(st.builds(Binding, VARIABLES), st.builds(Binding, text=TEXTS))
SAMPLINGS = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 1000),
    max_tokens=st.integers(1, 1 << 20),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 1 << 40), max_size=3).map(tuple),
    seed=st.one_of(st.none(), st.integers(0, 2**63 - 1)),
    logit_bias=st.dictionaries(st.integers(0, 1 << 20), st.floats(-100, 100), max_size=3),
    ignore_eos=st.booleans(),
)
TRANSFORMS = st.one_of(st.none(), st.builds(Transform, st.sampled_from(TransformKind), TEXTS))
SEGMENTS = st.lists(st.builds(Segment, st.sampled_from(SegmentKind), TEXTS), max_size=3)


@given(
    function=st.builds(FunctionRecord, name=TEXTS, segments=SEGMENTS.map(tuple)),
    request=TOKENS,
    call=TOKENS,
    bindings=st.dictionaries(TEXTS, BINDINGS, max_size=4),
    output=VARIABLES,
    output_name=TEXTS,
    model=TEXTS,
    sampling=SAMPLINGS,
    transform=TRANSFORMS,
    raw_inputs=st.lists(VARIABLES, max_size=3),
    prompt_end=st.integers(0, 100),
    priority=st.integers(-(2**63), 2**63 - 1),
    share_prefixes=st.booleans(),
)
def test_a_form_filled_in_is_the_plain_encoding(
    function: FunctionRecord,
    request: str,
    call: str,
    bindings: dict[str, Binding],
    output: str,
    output_name: str,
    model: str,
    sampling: SamplingParams,
    transform: Transform | None,
    raw_inputs: list[str],
    prompt_end: int,
    priority: int,
    share_prefixes: bool,
) -> None:
    spec = RequestSpec(
        id=f"0-r-{request}",
        call=f"0-c-{call}",
        function=function.digest,
        function_name=function.name,
        prompt_end=prompt_end,
        bindings=bindings,
        output=output,
        output_name=output_name,
        model=model,
        sampling=sampling,
        transform=transform,
        raw_inputs=tuple(raw_inputs),
        priority=priority,
        share_prefixes=share_prefixes,
    )
    form = RequestForm(
        function, prompt_end, list(bindings), output_name, model, sampling, transform, priority, share_prefixes
    )
    bound = {n: bound_variable(b.variable) if b.text is None else bound_text(b.text) for n, b in bindings.items()}
    assert form.fill(spec.id, spec.call, bound, output, raw_inputs) == spec.to_json()


@P.semantic_function
def review(
    text: P.Input,
    facts: dict[str, str],
    first: P.Output = P.output(transform=P.regex('"(.*)"')),
    rest: P.Output = P.output(n=3, temperature=1.0, seed=7, stop=("\n", '"'), logit_bias={5: 1.5}),
) -> None:
    """{{text}} {{facts}} "{{text}}":
    {{first}}
    {{rest}}"""


def request_of(variable: P.SemanticVariable) -> Request:
    assert variable._request is not None
    return variable._request


async def test_what_a_call_sends(client: P.Client, session: P.Session) -> None:
    strange = client.variable('0-v-"quoted"\\')
    for function in (review, review.using(model='a "model"', priority=3)):
        for text in ("plain", 'two\n"lines"', strange):
            outputs = function.using(session=session)(text, {"é": "\x00"})
            first, rest = outputs  # type: ignore[misc]  # a named tuple
            for variable in (first, *rest):
                request = request_of(variable)
                assert request.text == request.spec.to_json()
                assert request.spec.inputs(request.function) == tuple(used.id for used in request.inputs)
                assert (request.id, request.call, request.output) == (
                    request.spec.id,
                    request.spec.call,
                    request.spec.output,
                )
                assert (request.model, request.function_name) == (request.spec.model, "review")
            assert [request_of(sibling).spec.sampling.seed for sibling in rest] == [7, 8, 9]
    session._outbox._open.requests.clear()  # nothing of it is to be sent


def test_few_forms_are_kept() -> None:
    plan = review._plan.outputs[0]
    forms = [plan.form(review._plan.record, f"model {i}", 0) for i in range(5000)]
    assert forms[0].model == "model 0"
    assert len(plan._forms) <= 2048
    assert plan.form(review._plan.record, "model 4999", 0) is forms[-1]
