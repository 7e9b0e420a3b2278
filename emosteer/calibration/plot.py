"""A picture of a calibration: effect and perplexity over strength, concept against random."""

from __future__ import annotations

from typing import Any

from .measured import UNSTEERED, Measurements, span


def draw(found: Measurements, path: Any = None) -> Any:
    """A matplotlib figure, one row a concept and set of layers; written to `path` if given."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "emosteer[demo]"') from None

    panels = list(dict.fromkeys((m.concept, m.layers) for m in found.measurements))
    figure = Figure(figsize=(11, 3.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 3, squeeze=False)
    for row, (concept, layers) in zip(axes, panels):
        here = [m for m in found.measurements if (m.concept, m.layers) == (concept, layers)]
        plain = next(m for m in here if m.direction == UNSTEERED)
        best = found.strongest(concept, layers)
        for axis, value, title in zip(
            row,
            ("log_probability", "projection", "perplexity"),
            ("Δ log p(word)", "read back, less unsteered", "perplexity"),
        ):
            for direction in dict.fromkeys(m.direction for m in here if m.direction != UNSTEERED):
                arm = sorted(
                    (m.strength, getattr(m, value))
                    for m in (*here, plain)
                    if m.direction in (direction, UNSTEERED)
                )
                style = {"color": "0.6", "linestyle": "--"} if direction != concept else {"color": "C0"}
                axis.plot(*zip(*arm), marker="o", markersize=3, label=direction, **style)
            if value == "perplexity":
                axis.set_yscale("log")
                axis.axhline(
                    found.max_perplexity * plain.perplexity, color="C3", linewidth=0.8, label="coherent below"
                )
            if best is not None:
                axis.axvline(best.strength, color="C2", linewidth=0.8, label=f"strongest: {best.strength:g}")
            axis.set(title=f"{concept}, blocks {span(layers)}", xlabel="strength", ylabel=title)
        row[-1].legend(fontsize=8)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
