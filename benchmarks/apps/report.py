"""``python -m benchmarks.apps.report``: results/apps.json as tables and plots, and which aims hold."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.reasons import REASONS
from benchmarks.apps.reference import (
    AIMS,
    CHAT_LOSS,
    CHAT_RATIOS,
    MAP_REDUCE_LOSS,
    NORMALISED_BOUND_MS,
    RATE_RATIOS,
    SECONDS,
    STRONGEST,
    Aim,
)
from benchmarks.apps.rows import Row, read, with_ratios
from benchmarks.apps.systems import BASELINES, OURS, PAGES, REFERENCE_LATENCY

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = [system.name for system in (REFERENCE_LATENCY, *BASELINES, PAGES)]
HEAD = """# Applications, end to end

Written by `python -m benchmarks.apps.report` from [apps.json](apps.json); what is measured, and how, is in
[the benchmarks' README](../README.md#applications-make-bench-apps). Seconds are medians over the repeats, ± half their
spread; "x" is how many times as long as ours a system took.
"""
Found = dict[tuple[str, str, str, str, str], Row]


def markdown(rows: Sequence[Row], folder: Path = RESULTS) -> str:
    """Return the whole report; ``folder`` is where it will lie, with timelines in a folder of that name."""
    found = _by_key(rows)
    parts = [HEAD, "## Aims\n", _aims(found)]
    for mode in ("simulated", "real"):
        for name in EXPERIMENTS:
            mine = [row for row in rows if row["experiment"] == name and row["mode"] == mode]
            if mine:
                parts += [f"## {name}, {mode}\n", _about(mine), _seconds(name, mode, mine), _reason(found, name, mode)]
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


def _by_key(rows: Iterable[Row]) -> Found:
    return {(r["experiment"], r["point"], r["mode"], r["system"], r["feature_off"]): r for r in rows}


def _about(rows: Sequence[Row]) -> str:
    first = rows[0]
    repeats = " to ".join(str(number) for number in sorted({row["repeats"] for row in rows}))
    said = [f"{repeats} repeats", first["date"], *(str(first[k]) for k in ("machine", "model", "scale") if k in first)]
    if "network" in first and first["network"] != 1:
        said.append(f"round trips times {first['network']:g}")
    return ", ".join(said) + ".\n"


def _seconds(name: str, mode: str, rows: Sequence[Row]) -> str:
    systems = [system for system in COLUMNS if any(row["system"] == system for row in rows)]
    lines = _header(["point", "parrot_mq", *systems, *(["reference's own"] if mode == "simulated" else [])])
    for point in _points(name, rows):
        cells = {(r["system"]): r for r in rows if r["point"] == point and not r["feature_off"]}
        if OURS not in cells:
            continue
        line = [point, f"**{_value(cells[OURS])}**"]
        line += [f"{_value(cells[s])} ({cells[s]['ratio_to_ours']:.2f} x)" if s in cells else "-" for s in systems]
        if mode == "simulated":
            line.append(f"{SECONDS[name, point]:g} s" if (name, point) in SECONDS else "-")
        lines.append(_line(line))
    return "\n".join(lines) + "\n"


def _reason(found: Found, name: str, mode: str) -> str:
    """Return why an aim is missed, if one is and it is known."""
    missed = any(
        value is not None and value < aim.ratio
        for aim in AIMS
        if (aim.experiment, aim.mode) == (name, mode)
        for value in (_fastest(found, aim, systems) for systems in (aim.named, STRONGEST))
    )
    is_mixed = name == "mixed" and any("**no**" in line for line in _mixed_aims(found) if f", {mode}:" in line)
    reason = REASONS.get((name, mode), "")
    return f"*Where an aim is missed:* {reason}\n" if reason and (missed or is_mixed) else ""


def _extras(name: str, rows: Sequence[Row]) -> str:
    extras = {"gpts": ("normalised_ms",), "copilot": ("wall_s",), "chain-background": ("background_s",)}.get(name, ())
    if name == "mixed":
        extras = ("chat_normalised_ms", "chat_tpot_ms", "map_reduce_wall_s", "map_reduce_tokens_per_s")
    lines = _header(["point", "system", *extras])
    for row in rows:
        if extras and any(extra in row for extra in extras) and not row["feature_off"]:
            lines.append(_line([row["point"], row["system"], *(str(row.get(extra, "-")) for extra in extras)]))
    text = "\n".join(lines) + "\n" if len(lines) > 2 else ""
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
    lines += _header(["system", "requests/s", "ours x", "reference's x"])
    for key, curve in curves.items():
        if len(curve) > 1:
            rate = rate_within(curve)
            ratio = f"{_at_least(own)}{own / rate:.2f}" if rate and not _at_least(rate) else "-"
            lines.append(_line([_label(*key), f"{_at_least(rate)}{rate:.2f}", ratio, str(RATE_RATIOS.get(key, "-"))]))
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
    return "\nApplications that finish earlier than with a baseline:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _ablations(rows: Sequence[Row]) -> str:
    lines = _header(["point", "off", "seconds", "slower by", "same outputs"])
    for row in rows:
        if row["feature_off"]:
            loss = f"{row['ratio_to_ours'] - 1:+.1%}" if row["ratio_to_ours"] else "-"
            same = "-" if row["same_outputs"] is None else f"{row['same_outputs']:.1%}"
            lines.append(_line([row["point"], row["feature_off"], _value(row), loss, same]))
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def aims(found: Found) -> list[tuple[str, float, str, float | None, float | None]]:
    """Return (what, aimed ratio, its baseline, ratio to that, ratio to the stronger cached one); None: not measured."""
    lines = []
    for aim in AIMS:
        fastest = [_fastest(found, aim, systems) for systems in (aim.named, STRONGEST)]
        lines.append((f"{aim.experiment}, {aim.point}, {aim.mode}", aim.ratio, " or ".join(aim.named), *fastest))
    return lines


def _fastest(found: Found, aim: Aim, systems: Sequence[str]) -> float | None:
    rows = [found.get((aim.experiment, aim.point, aim.mode, system, "")) for system in systems]
    return min((row["ratio_to_ours"] for row in rows if row and row["ratio_to_ours"]), default=None)


def _aims(found: Found) -> str:
    lines = _header(["what", "aim", "against", "ratio", "holds", "against the stronger with prefix caching", "holds"])
    for what, ratio, named, seen, strongest in aims(found):
        cells = [what, f"{ratio:g}", named]
        for value in (seen, strongest):
            cells += ["-", "not measured"] if value is None else [f"{value:.2f}", "yes" if value >= ratio else "**no**"]
        lines.append(_line(cells))
    return "\n".join([*lines, "", *_mixed_aims(found)]) + "\n"


def _mixed_aims(found: Found) -> list[str]:
    lines = []
    for mode in ("simulated", "real"):
        both, chats, work = (
            found.get(("mixed", point, mode, OURS, "")) for point in ("both", "chats alone", "map-reduce alone")
        )
        if both and chats and work:
            slower = both["chat_tpot_ms"] / chats["chat_tpot_ms"] - 1
            less = 1 - both["map_reduce_tokens_per_s"] / work["map_reduce_tokens_per_s"]
            lines += [
                f"- mixed, {mode}: chats take {slower:+.1%} a token beside map-reduces (aim: at most "
                f"{CHAT_LOSS:+.0%}): " + ("yes" if slower <= CHAT_LOSS else "**no**"),
                f"- mixed, {mode}: map-reduces lose {less:.1%} of their tokens/s beside chats (aim: at most "
                f"{MAP_REDUCE_LOSS:.0%}): " + ("yes" if less <= MAP_REDUCE_LOSS else "**no**"),
            ]
        for name, system, aim in CHAT_RATIOS:
            other = found.get(("mixed", "both", mode, system, ""))
            if both and other:
                ratio = other[name] / both[name]
                holds = "yes" if ratio >= aim else "**no**"
                lines.append(f"- mixed, {mode}: {system}'s {name} is {ratio:.2f} x ours (aim: {aim:g}): {holds}")
    return lines


def _points(name: str, rows: Sequence[Row]) -> list[str]:
    measured = {row["point"] for row in rows}
    return [point.label for point in EXPERIMENTS[name].points if point.label in measured]


def _value(row: Row) -> str:
    return f"{row['seconds_median']:.2f} s ± {row['spread'] / 2:.0%}"


def _label(system: str, feature_off: str) -> str:
    return f"{system} without {feature_off}" if feature_off else system


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


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
