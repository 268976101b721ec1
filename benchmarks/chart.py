"""The chart of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHER, MISSED = "#1f6feb", "#9aa4b2", "#c9372c"
MOST = 1.1
"""Wall time over depth × latency that a technique may take."""


def draw(path: Path, figures: Mapping[str, Any]) -> None:
    """Draw the figures of one run into an SVG file."""
    every = figures["techniques"]["every"]
    height = 2.0 + 0.22 * len(every)
    # The same figures make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "optillm", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        _throughput(left, figures["passthrough"])
        _walls(right, every)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _throughput(axes: Axes, passing: Mapping[str, Any]) -> None:
    names = ("direct", "echo", "optillm")
    labels = ("upstream itself", "bare echo proxy", "optillm, none")
    bars = axes.barh(labels, [passing["rps"][n] for n in names], color=(OTHER, OTHER, OURS))
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title(f"requests/s, {passing['clients']} clients, one worker")
    axes.spines[["top", "right"]].set_visible(False)


def _walls(axes: Axes, every: Mapping[str, Any]) -> None:
    measured = {
        slug: max(mode["wall_over_chain"] for mode in modes.values())
        for slug, modes in every.items()
        if not any("fault" in mode for mode in modes.values())
    }
    colours = [OURS if value <= MOST else MISSED for value in measured.values()]
    bars = axes.barh(list(measured), list(measured.values()), color=colours)
    axes.bar_label(bars, fmt="{:.2f}", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.axvline(MOST, color="black", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title("wall time / (depth × latency), slower of both upstreams")
    axes.spines[["top", "right"]].set_visible(False)
