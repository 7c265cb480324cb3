"""A plot for each experiment: seconds by point and system; for GPTs, normalised latency by request rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.reference import NORMALISED_BOUND_MS
from benchmarks.apps.rows import Row
from benchmarks.apps.systems import BASELINES, OURS, PAGES, REFERENCE_BASELINES, REFERENCE_LATENCY

SYSTEMS = [OURS, *(system.name for system in (REFERENCE_LATENCY, *BASELINES, PAGES, *REFERENCE_BASELINES))]


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write an SVG for each experiment and mode into ``folder``; the same rows give the same files."""
    matplotlib.rcParams.update({"svg.hashsalt": "parrot_mq", "svg.fonttype": "none"})
    paths = []
    for name, experiment in EXPERIMENTS.items():
        for mode in ("simulated", "real"):
            mine = [r for r in rows if r["experiment"] == name and r["mode"] == mode and not r["feature_off"]]
            if not mine:
                continue
            labels = [point.label for point in experiment.points if any(row["point"] == point.label for row in mine)]
            figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
            (_curves if name == "gpts" else _bars)(axes, mine, labels)
            axes.set_title(f"{name}, {mode}")
            figure.legend(fontsize="small", loc="outside right upper")
            path = folder / f"apps-{name}-{mode}.svg"
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            paths.append(path)
    return paths


def _bars(axes: matplotlib.axes.Axes, rows: Sequence[Row], labels: Sequence[str]) -> None:
    systems = [system for system in SYSTEMS if any(row["system"] == system for row in rows)]
    width = 0.8 / len(systems)
    for index, system in enumerate(systems):
        cells = {row["point"]: row for row in rows if row["system"] == system}
        places = [number for number, label in enumerate(labels) if label in cells]
        seconds = [cells[labels[number]]["seconds_median"] for number in places]
        errors = [cells[labels[number]]["spread"] * value / 2 for number, value in zip(places, seconds, strict=True)]
        axes.bar([p + (index + 0.5) * width - 0.4 for p in places], seconds, width, yerr=errors, label=system)
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_ylabel("seconds")


def _curves(axes: matplotlib.axes.Axes, rows: Sequence[Row], labels: Sequence[str]) -> None:
    for system in SYSTEMS:
        curve = [(float(r["point"].partition("=")[2]), r["normalised_ms"]) for r in rows if r["system"] == system]
        if curve:
            axes.plot(*zip(*sorted(curve), strict=True), marker="o", label=system)
    axes.axhline(NORMALISED_BOUND_MS, linestyle=":", color="grey")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("ms for each output token")
