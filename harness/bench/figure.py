"""Where a step's time goes, drawn: one bar per arm, its parts in the order they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.bench.breakdown import PARTS
from harness.bench.table import timed

# Teacher and student in two hues, what serves neither in greys: readable without colour by the order alone.
COLOURS = {
    "data": "#9aa0a6", "teacher": "#d9822b", "student forward": "#5b8fd6", "objective": "#7c5cc4",
    "backward": "#2f5ea8", "optimizer": "#5f6b7a", "communication": "#c3c9d1",
}  # fmt: skip


def draw(table: dict[str, Any], path: Path) -> None:
    """Write the figure; the suffix chooses the format (svg, png, pdf)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = timed(table)
    figure, axes = pyplot.subplots(figsize=(8, 1.1 + 0.5 * len(arms)), layout="constrained")
    left = [0.0] * len(arms)
    longest = max((sum(row["breakdown_ms"].values()) for row in arms), default=0.0)
    for part in PARTS:
        widths = [row["breakdown_ms"][part] for row in arms]
        if max(widths, default=0.0) > 0.005 * longest:
            axes.barh([row["name"] for row in arms], widths, left=left, color=COLOURS[part], label=part, height=0.62)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step, parts run one after the other")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    if arms:
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)
