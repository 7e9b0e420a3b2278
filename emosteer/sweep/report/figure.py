"""A panel as a picture: a small plot for each concept that moves most, over the band of random directions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .curves import Panel

# Small plots in a picture, and beside one another.
MOST, COLUMNS = 12, 4


def draw(panel: Panel, path: Path | None = None, level: float = 0.95) -> Any:
    """A matplotlib figure of the `MOST` concepts with the widest reach; written to `path` if given.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "emosteer[demo]"') from None

    curves = panel.concepts[:MOST]
    columns = min(len(curves), COLUMNS)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.4 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, curve in zip(axes.flat, curves):
        points = [p for p in curve.points if math.isfinite(p.strength) and math.isfinite(p.value.mean)]
        start = curve.unsteered
        axis.axhline(start.mean, color="0.4", linewidth=0.8, linestyle="--", label="unsteered")
        for side in (-1, 1):  # a curve passes the unsteered mean at 0
            half = sorted((p for p in points if p.strength * side > 0), key=lambda p: abs(p.strength))
            x = [0.0, *(p.strength for p in half)]
            for estimates, colour, label in (
                ([p.random_value for p in half], "0.6", "random directions"),
                ([p.value for p in half], "C0", f"{level:.0%} interval"),
            ):
                low, high = ([getattr(e, end) for e in (start, *estimates)] for end in ("low", "high"))
                first = label if half and side == (1 if points[-1].strength > 0 else -1) else None
                axis.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0, label=first)
        line = sorted([(0.0, start.mean), *((p.strength, p.value.mean) for p in points)])
        axis.plot(*zip(*line), color="C0", marker="o", markersize=3, linewidth=1.2, label="mean")
        axis.set_title(curve.concept.replace("$", r"\$"), fontsize=9)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    axes[0][0].legend(fontsize=6)
    several = len(panel.concepts) > len(curves)
    which = f"; the {len(curves)} of {len(panel.concepts)} concepts that move most" if several else ""
    place = f" (layers {panel.layers}, positions {panel.positions}{which})" if panel.layers else ""
    figure.suptitle(f"{panel.metric}{place}".replace("$", r"\$"), fontsize=10)
    figure.supxlabel("strength", fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
