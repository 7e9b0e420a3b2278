"""Figures without a display, and the dose–response curve that several studies draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def figure(size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """`(figure, axis or axes)` of matplotlib, without pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "emosteer[science]"') from None
    drawn = Figure(figsize=size, layout="constrained")
    return drawn, drawn.subplots(rows, columns)


def doses(axis: Any, arms: Mapping[str, Sequence[tuple[float, float, float, float]]], ylabel: str) -> None:
    """Curves of `(strength, mean, low, high)` with their intervals; random directions in grey."""
    for k, (name, points) in enumerate(arms.items()):
        points = sorted(points)
        x, y, low, high = zip(*points)
        colour = "0.5" if name == "random" else f"C{k}"
        style = "--" if name == "random" else "-"
        axis.plot(x, y, color=colour, linestyle=style, marker="o", markersize=3, label=name)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axis.set(xlabel="strength (fraction of the mean residual norm)", ylabel=ylabel)
    axis.legend(fontsize=8)
