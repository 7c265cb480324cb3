"""Why aims are missed, by experiment: to be read beside the rows, with the timelines that show it."""

from __future__ import annotations

REASONS: dict[tuple[str, str], str] = {
    ("chain", "simulated"): (
        "One request runs at a time: what there is to gain is the network between two calls, and prefill that is "
        "done while the call before decodes. The reference's chunks of 1,024 tokens really hold 474 on average, "
        "so that it had less prefill between two round trips; the points with chunks of 474 are its shape as run. "
        "And the simulated engine charges a step that prefills and decodes the sum of both: what is prefilled "
        "ahead holds up the decode by as much as it saves later, so that eager and streamed prefill gain nothing "
        "on an engine that is never idle. That is too much: on our CPU engine such a step was measured to save 72 "
        "to 88 % of a decode step (model s, bfloat16, prefills of 16 to 256 tokens beside one sequence), since "
        "the weights are read once for both."
    ),
    ("map-reduce", "simulated"): (
        "Against an engine with the same costs and no bound there is one round trip to save, between the maps and "
        "the reduce: maps of one batch cost the same whoever sent them. The reference's ratios are those of its "
        "baseline's bound of 4,096 tokens, and of an engine that took 0.83 ms for each sequence of a step where "
        "its own took 0.24."
    ),
    ("concurrent-chains", "simulated"): (
        "Against an engine without a bound: prefills of many chains fill it, it is never idle, client-side "
        "orchestration hides its round trips behind the other chains, and both sides have the same work to do."
    ),
    ("multi-agent", "simulated"): (
        "With 16 files the longest output of each of the ten stages, one after the other, is 5,712 tokens; at the "
        "20.8 ms that a lone sequence takes for one that is 119 s, and the baseline's 1,242 s would be 10.4 x of "
        "it. In a batch of 16 a token takes 24.5 ms, which gives what is measured. (The artifact's own seconds "
        "give 8.9 x, not 11.7 x.) Against a baseline whose engine shares prefixes as well, the stages take the "
        "same time."
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
    ("map-reduce", "real"): (
        "The client pays two round trips where we pay one, so that 2 x would need an engine that takes no time at all."
    ),
    ("chain-background", "simulated"): (
        "With these costs an unbounded engine keeps up with 3.5 requests a second without a queue, and so nearly "
        "does the bounded one: a chain hardly waits in any system, and gains its round trips. The reference's "
        "baseline, bounded by 4,096 tokens on a slower engine, was full from 3 requests a second on."
    ),
    ("copilot", "simulated"): (
        "Against a baseline whose attention reads shared prefixes once, as ours does, there is nothing else to "
        "gain for single requests."
    ),
    ("multi-agent", "real"): (
        "Of the baseline's time ten round trips are a third; the rest is the same work on the same engine. "
        "Outputs are compared in bfloat16, where a batch of other prompts rounds shared attention otherwise, and "
        "a model with random weights then goes another way; lengths stay the same."
    ),
}
