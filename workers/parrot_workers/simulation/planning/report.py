"""Outcomes as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from parrot_workers.simulation.planning.capacity import Goal, Outcome, Spread, smallest

_HEAD = ("engines", "latency s", "first token s", "per token ms", "busy", "tokens/s", "cached", "batch")
_NAMES = {
    "p50_s": "latency p50",
    "p95_s": "latency p95",
    "ttft_p95_s": "first token p95",
    "tpot_p95_ms": "per token p95",
}


def table(outcomes: Sequence[Outcome], goal: Goal) -> str:
    """Return a line for each number of engines: distributions as p50 / p95, and what misses the goal."""
    rows = [[*_HEAD, "misses"] if goal.is_set else list(_HEAD)]
    for each in outcomes:
        row = [
            str(each.num_engines),
            _spread(each.latency_s),
            _spread(each.ttft_s),
            _spread(each.tpot_ms),
            f"{each.utilisation:.0%}",
            f"{each.output_tokens_per_s:.0f}",
            f"{each.cached_share:.0%}",
            f"{each.mean_batch:.1f}",
        ]
        rows.append([*row, ", ".join(_NAMES[name] for name in goal.misses(each)) or "-"] if goal.is_set else row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def verdict(outcomes: Sequence[Outcome], goal: Goal) -> str:
    """Return the sentence that answers the question."""
    counts = [each.num_engines for each in outcomes]
    if not goal.is_set:
        return "No goal was given: --p95-s, --ttft-p95-s or --tpot-p95-ms say what is good enough."
    found = smallest(outcomes, goal)
    if found is None:
        return f"None of these numbers of engines reaches the goal; try more than {max(counts)}."
    return f"{found} {'engine reaches' if found == 1 else 'engines reach'} the goal."


def _spread(spread: Spread) -> str:
    return f"{_number(spread.p50)} / {_number(spread.p95)}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
