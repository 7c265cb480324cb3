"""Why aims are missed, and features save nothing, by experiment: to be read beside the rows and their timelines."""

from __future__ import annotations

REASONS: dict[tuple[str, str], str] = {
    ("chain", "simulated"): (
        "One request runs at a time: what there is to gain is the network between two calls, and prefill that is "
        "done while the call before decodes, as far as its steps hide it. Which of the two is missing shows in the "
        "table of what can be reached."
    ),
    ("map-reduce", "simulated"): (
        "Against an engine with the same costs and no bound there is one round trip to save, between the maps and "
        "the reduce: maps of one batch cost the same whoever sent them. The reference's ratios are those of its "
        "baseline's bound of 4,096 tokens, and of an engine that took 0.83 ms for each sequence of a step where "
        "its own took 0.24: that baseline is a column of its own."
    ),
    ("concurrent-chains", "simulated"): (
        "Against an engine without a bound: client-side orchestration hides its round trips behind the other chains, "
        "and both sides have the same work to do; what is left is prefill that decode steps hide."
    ),
    ("multi-agent", "simulated"): (
        "The longest output of each of the ten stages, one after the other, bounds what any scheduler can do (the "
        "floor), and a latency-centric baseline whose requests run one by one cannot take longer than all of them in "
        "a row. The artifact's own seconds for 16 files give 8.9 x, not 11.7 x, with 6 s taken off on one side. "
        "Against a baseline whose engine shares prefixes as well, the stages take the same time."
    ),
    ("mixed", "simulated"): (
        "Five chats on each of two engines take 3 to 5 % more a token than when they are spread over four, ten on one "
        "engine 10 to 17 %; map-reduces that have two engines to themselves lose 20 % of their tokens/s, with three 6 "
        "%. So no fixed division keeps both bounds; one that moves with the load does, narrowly. The ratios over "
        "baselines ask for more than either kind of work has alone: on all four engines and without the other, chats "
        "take 30.1 ms for a token of a whole request and 28.5 ms between two tokens, and a map-reduce takes 8.0 s. "
        "Tokens/s hide that each map-reduce takes longer, since they are bounded by arrivals: the "
        "nine come within 23 s. An engine that paces nothing is done with each sooner, and its chats wait instead. "
        "The reference set its bounds by hand: 16 chats, 32 map-reduces on an engine."
    ),
    ("chain-background", "simulated"): (
        "With these costs an unbounded engine keeps up with 3.5 requests a second without a queue, and so nearly "
        "does one bounded by 6,144 tokens: a chain hardly waits in any system. The reference's baseline, bounded by "
        "4,096 tokens on a slower engine, was full from 3 requests a second on; and in its runs all requests in the "
        "background were one text, which its own system computed once and that baseline each time (as run)."
    ),
    ("copilot", "simulated"): (
        "Against a baseline whose attention reads shared prefixes once, as ours does, there is nothing else to "
        "gain for single requests."
    ),
    ("map-reduce", "real"): (
        "The client pays two round trips where we pay one: 2 x would need an engine that takes no time at all. See the "
        "ratio by the network alone in the table of what can be reached."
    ),
    ("multi-agent", "real"): (
        "Nine round trips of ten are what there is to save; the rest is the same work on the same engine (see the "
        "ratio by the network alone). In bfloat16 outputs differ: a batch of other prompts rounds shared attention "
        "otherwise, and a model with random weights then goes another way; lengths stay the same. In float32, a point "
        "of its own, they are the same."
    ),
    ("mixed", "real"): (
        "There is one engine, on one core, so that nothing can be kept apart: chats come first in it, and still share "
        "each of its steps. Where there are several engines see the simulated rows."
    ),
}

FEATURES: dict[str, str] = {
    "chain": (
        "Eager and streamed prefill each do what the other does where an input that is being generated comes right "
        "behind a known beginning: their gain shows with both off. A chain is alone, so objectives and affinity have "
        "nothing to decide."
    ),
    "map-reduce": (
        "All maps go to the only engine at once, as a group or not; where several engines and others compete, see "
        "task-groups."
    ),
    "task-groups": (
        "Sibling admission saves nothing here: members of a group are dispatched in one plan and reach the engine "
        "together; the first publishes their common beginning when it is planned, so that none computes it twice; and "
        "one that comes a step late is done a step late. It is for engines that many write to at once, whose members "
        "arrive apart, and what it can save then is reading the common beginning once more in a step or two."
    ),
}
"""Why features save nothing, or nothing alone."""
