"""Tenants and the prefix cache, through the worker: nobody reads another's blocks unless both said so."""

from __future__ import annotations

from typing import Any

import pytest

PROMPT = "echo:" + "a long system prompt, known to many, " * 20


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        pytest.param(("acme", False), ("acme", False), True, id="one tenant"),
        pytest.param(("acme", False), ("other", False), False, id="two tenants"),
        pytest.param(("acme", False), ("other", True), False, id="only the one who looks says so"),
        pytest.param(("acme", True), ("other", False), False, id="only the one who is looked at says so"),
        pytest.param(("acme", True), ("other", True), True, id="both say so"),
    ],
)
async def test_who_finds_whose_prefix(
    open_store: Any, make_desk: Any, working: Any, gated: Any, first: Any, second: Any, found: bool
) -> None:
    engine = gated()
    engine.permit()
    async with await open_store() as store, working(open_store, lambda: engine) as worker:
        cached = []
        for tenant, shares in (first, second):
            desk = make_desk(store, tenant=tenant)
            asked = await desk.ask(PROMPT, share_prefixes=shares, dispatch_to=worker.engine_id)
            await desk.value(asked)
            cached.append(engine.stats().num_cached_tokens)
    assert cached[0] == 0
    assert (cached[1] > 0) is found
