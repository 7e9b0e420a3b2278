"""The circumplex as a picture."""

from __future__ import annotations

from typing import Any

import torch

from .plane import Plane


def draw(found: Plane, path: Any = None, *, labels: int = 120) -> Any:
    """Concepts in the plane of valence and arousal, coloured by human valence where it is known.

    Args:
        found: what to draw.
        path: where to write it; None: nowhere.
        labels: how many concepts are named, those farthest out first; none overlaps another.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "emosteer[demo]"') from None

    figure = Figure(figsize=(11, 9), layout="constrained")
    axis = figure.subplots()
    x, y = (found.coordinates[:, j] / found.coordinates[:, j].abs().max() for j in (0, 1))
    known = torch.isfinite(found.valence)
    axis.scatter(x[~known], y[~known], s=14, color="0.75", label="no human rating")
    shown = axis.scatter(
        x[known],
        y[known],
        s=22,
        c=found.valence[known],
        cmap="RdYlGn",
        vmin=-3.5,
        vmax=3.5,
        edgecolors="0.4",
        linewidths=0.3,
    )
    figure.colorbar(shown, ax=axis, label="human valence", shrink=0.6)
    axis.axhline(0, color="0.85", zorder=0)
    axis.axvline(0, color="0.85", zorder=0)
    axis.set(xlim=(-1.18, 1.18), ylim=(-1.12, 1.12))
    share = found.explained * 100
    axis.set_xlabel(
        f"valence: PC{found.valence_component} ({share[found.valence_component - 1]:.0f}% of variance), "
        f"r = {found.valence_r:.2f} with human ratings of {found.rated[0]} words"
    )
    axis.set_ylabel(
        f"arousal: PC{found.arousal_component} ({share[found.arousal_component - 1]:.0f}% of variance), "
        f"r = {found.arousal_r:.2f} with human ratings of {found.rated[1]} words"
    )
    axis.set_title(f"{len(found.names)} emotion directions after block {found.layer}")
    _label(figure, axis, x, y, found.names, labels)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _label(
    figure: Any, axis: Any, x: torch.Tensor, y: torch.Tensor, names: tuple[str, ...], most: int
) -> None:
    """Names beside their points, those farthest out first, each at the first of eight places that is free."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    boxes: list[Any] = []
    places = [(5, 3), (-5, 3), (5, -9), (-5, -9), (0, 7), (0, -13), (12, 8), (-12, 8)]
    for k in (x.square() + y.square()).argsort(descending=True).tolist()[:most]:
        for dx, dy in places:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axis.annotate(
                names[k],
                (float(x[k]), float(y[k])),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                fontsize=8,
            )
            text.set_in_layout(False)  # or the axes move when the figure is drawn, and the names with them
            box = text.get_window_extent(renderer).padded(1)
            if not any(box.overlaps(other) for other in boxes):
                boxes.append(box)
                break
            text.remove()
