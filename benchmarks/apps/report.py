"""``python -m benchmarks.apps.report``: results/apps.json as tables and plots, and which aims hold."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from benchmarks.apps.aims import aims_table, fit_table, is_missed, mixed_aims, reach_table
from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.reasons import REASONS
from benchmarks.apps.reference import AIMS, NORMALISED_BOUND_MS, RATE_RATIOS
from benchmarks.apps.rows import Row, read, with_ratios
from benchmarks.apps.systems import BASELINES, OURS, PAGES, REFERENCE_BASELINES, REFERENCE_LATENCY
from benchmarks.apps.tables import Found, by_key, folded, header, line, seconds

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = [system.name for system in (REFERENCE_LATENCY, *BASELINES, PAGES, *REFERENCE_BASELINES)]
HEAD = """# Applications, end to end

Written by `python -m benchmarks.apps.report` from [apps.json](apps.json); what is measured, and how, is in
[the benchmarks' README](../README.md#applications-make-bench-apps). Seconds are medians over the repeats, ± half their
spread; "x" is how many times as long as ours a system took.
"""


FIT_HEAD = """The shapes that the reference ran, on its own baseline as simulated: its engine of then, its bound, a
round trip for each call. Seconds by its artifact, of the same articles.
"""


def markdown(rows: Sequence[Row], folder: Path = RESULTS) -> str:
    """Return the whole report; ``folder`` is where it will lie, with timelines in a folder of that name."""
    rows = [row for row in rows if row["point"] in {point.label for point in EXPERIMENTS[row["experiment"]].points}]
    found = by_key(rows)
    parts = [HEAD, "## Aims\n", aims_table(found), "## What can be reached\n", reach_table(found)]
    parts += ["## How near the simulated reference is\n", FIT_HEAD, fit_table(found)]
    for mode in ("simulated", "real"):
        for name in EXPERIMENTS:
            mine = [row for row in rows if row["experiment"] == name and row["mode"] == mode]
            if mine:
                parts += [f"## {name}, {mode}\n", _about(mine), _seconds(name, mine), _reason(found, name, mode)]
                parts += [
                    text
                    for text in (
                        _extras(name, mine),
                        _ablations(mine),
                        _timelines(name, mode, folder),
                        _plot_line(name, mode),
                    )
                    if text
                ]
    return "\n".join(parts)


def _about(rows: Sequence[Row]) -> str:
    first = rows[0]
    repeats = " to ".join(str(number) for number in sorted({row["repeats"] for row in rows}))
    said = [f"{repeats} repeats", first["date"], *(str(first[k]) for k in ("machine", "model", "scale") if k in first)]
    if "network" in first and first["network"] != 1:
        said.append(f"round trips times {first['network']:g}")
    return ", ".join(said) + ".\n"


def _seconds(name: str, rows: Sequence[Row]) -> str:
    systems = [system for system in COLUMNS if any(row["system"] == system for row in rows)]
    lines = header(["point", "parrot_mq", *systems])
    for point in _points(name, rows):
        cells = {(r["system"]): r for r in rows if r["point"] == point and not r["feature_off"]}
        if OURS in cells:
            others = [
                f"{seconds(cells[s])} ({cells[s]['ratio_to_ours']:.2f} x)" if s in cells else "-" for s in systems
            ]
            lines.append(line([point, f"**{seconds(cells[OURS])}**", *others]))
    return "\n".join(lines) + "\n"


def _reason(found: Found, name: str, mode: str) -> str:
    """Return why an aim is missed, if one is and it is known."""
    missed = any(is_missed(found, aim) for aim in AIMS if (aim.experiment, aim.mode) == (name, mode))
    is_mixed = name == "mixed" and any("**no**" in text for text in mixed_aims(found) if f", {mode}:" in text)
    reason = REASONS.get((name, mode), "")
    return f"*Where an aim is missed:* {reason}\n" if reason and (missed or is_mixed) else ""


EXTRAS = {
    "gpts": ("normalised_ms",),
    "copilot": ("wall_s",),
    "mixed": ("chat_normalised_ms", "chat_tpot_ms", "map_reduce_wall_s", "map_reduce_tokens_per_s"),
    **dict.fromkeys(("chain-background", "retention", "task-groups"), ("background_s",)),
}
"""What stands beside the seconds of an experiment."""


def _extras(name: str, rows: Sequence[Row]) -> str:
    extras = EXTRAS.get(name, ())
    lines = header(["point", "system", *extras])
    for row in rows:
        if extras and any(extra in row for extra in extras) and not row["feature_off"]:
            lines.append(line([row["point"], row["system"], *(str(row.get(extra, "-")) for extra in extras)]))
    text = folded(", ".join(extras), "\n".join(lines) + "\n") if len(lines) > 2 else ""
    return text + (_rates(rows) if name == "gpts" else _earlier(rows) if name == "concurrent-chains" else "")


def rate_within(rows: Iterable[Row], bound_ms: float = NORMALISED_BOUND_MS) -> float:
    """Return the request rate at which normalised latency reaches ``bound_ms``, by straight lines between rates.

    Beyond the measured rates it is the largest that was measured; 0 if the smallest is past the bound already.
    """
    curve = sorted((float(row["point"].partition("=")[2]), row["normalised_ms"]) for row in rows)
    last = 0.0
    for index, (rate, latency_ms) in enumerate(curve):
        if latency_ms > bound_ms:
            if index:
                before, before_ms = curve[index - 1]
                return before + (rate - before) * (bound_ms - before_ms) / (latency_ms - before_ms)
            return 0.0
        last = rate
    return last


def _at_least(rate: float) -> str:
    """Say so where a rate is the largest that was tried."""
    return "≥ " if rate == max(point.values["rate"] for point in EXPERIMENTS["gpts"].points) else ""


def _rates(rows: Sequence[Row]) -> str:
    curves: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        curves[row["system"], row["feature_off"]].append(row)
    own = rate_within(curves.get((OURS, ""), []))
    lines = [f"\nRequests/s within {NORMALISED_BOUND_MS:g} ms for each output token:\n"]
    lines += header(["system", "requests/s", "ours x", "reference's x"])
    for key, curve in curves.items():
        if len(curve) > 1:
            rate = rate_within(curve)
            ratio = f"{_at_least(own)}{own / rate:.2f}" if rate and not _at_least(rate) else "-"
            lines.append(line([_label(*key), f"{_at_least(rate)}{rate:.2f}", ratio, str(RATE_RATIOS.get(key, "-"))]))
    return "\n".join(lines) + "\n"


def _earlier(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row["system"] == OURS and not row["feature_off"]:
            for other in rows:
                if other["point"] == row["point"] and other["system"] in COLUMNS:
                    pairs = list(zip(row["applications_s"], other["applications_s"], strict=True))
                    earlier = sum(ours < theirs for ours, theirs in pairs)
                    lines.append(f"- {row['point']}, {other['system']}: {earlier} of {len(pairs)}")
    return folded("Applications that finish earlier than with a baseline", "\n".join(lines) + "\n") if lines else ""


def _ablations(rows: Sequence[Row]) -> str:
    lines = header(["point", "off", "seconds", "slower by", "same outputs"])
    for row in rows:
        if row["feature_off"]:
            loss = f"{row['ratio_to_ours'] - 1:+.1%}" if row["ratio_to_ours"] else "-"
            same = "-" if row["same_outputs"] is None else f"{row['same_outputs']:.1%}"
            lines.append(line([row["point"], row["feature_off"], seconds(row), loss, same]))
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _points(name: str, rows: Sequence[Row]) -> list[str]:
    measured = {row["point"] for row in rows}
    return [point.label for point in EXPERIMENTS[name].points if point.label in measured]


def _label(system: str, feature_off: str) -> str:
    return f"{system} without {feature_off}" if feature_off else system


def _timelines(name: str, mode: str, folder: Path) -> str:
    files = sorted((folder / "timelines").glob(f"{name}_*_{mode}_*.json"))
    links = ", ".join(f"[{path.stem}](timelines/{quote(path.name)})" for path in files)
    return f"Each call's life in milliseconds: {links}\n" if links else ""


def _plot_line(name: str, mode: str) -> str:
    return f"![{name}, {mode}](apps-{name}-{mode}.svg)\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.apps.report", description=__doc__)
    parser.add_argument("--file", type=Path, default=RESULTS / "apps.json")
    parser.add_argument("--no-plots", action="store_true", help="write the tables alone; plots need matplotlib")
    args = parser.parse_args()
    rows = with_ratios(read(args.file))
    folder = args.file.parent
    (folder / "apps.md").write_text(markdown(rows, folder))
    if not args.no_plots:
        from benchmarks.apps.plots import draw

        for path in draw(rows, folder):
            print(path)


if __name__ == "__main__":
    main()
