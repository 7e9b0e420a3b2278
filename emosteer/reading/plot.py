"""A reading as a picture: tokens across, concepts down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .scores import UNITS, Scores


def draw(reading: Scores, concepts: Sequence[str], path: Any = None) -> Any:
    """A matplotlib figure; written to `path` if given."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "emosteer[demo]"') from None
    counted = reading.counted()
    scores = torch.full((len(concepts), len(reading.tokens)), torch.nan)  # what does not count stays blank
    scores[:, counted] = torch.stack([reading.of(name)[counted] for name in concepts])
    most = max(float(scores[:, counted].abs().max()), 1e-9)
    width = min(max(6.0, 0.22 * len(reading.tokens) + 2), 40.0)
    figure = Figure(figsize=(width, 1.6 + 0.3 * len(concepts)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        scores, aspect="auto", cmap="RdYlBu_r", vmin=-most, vmax=most, interpolation="nearest"
    )
    axis.set_yticks(range(len(concepts)), concepts)
    step = max(1, len(reading.tokens) // 120)
    shown = range(0, len(reading.tokens), step)
    # "$" starts mathematics in matplotlib
    labels = [reading.tokens[i].strip().replace("$", r"\$") or "·" for i in shown]
    axis.set_xticks(list(shown), labels, rotation=90, fontsize=7)
    for turn in reading.turns[1:]:
        axis.axvline(turn.start - 0.5, color="0.2", linewidth=0.8)
    figure.colorbar(image, label=UNITS[reading.unit])
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
