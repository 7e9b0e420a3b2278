"""What a calibration gives: the measurements, and the ways to look at them."""

from __future__ import annotations

from typing import Any

from .measured import Measurements, span
from .plot import draw


class Calibration(Measurements):
    """Measurements over a grid, and what counts as coherent; see `Measurements`."""

    def table(self) -> Any:
        """A rich table, one line a measurement."""
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(title="steering strengths: effect and coherence", box=SIMPLE, pad_edge=False)
        for name in ("concept", "direction", "blocks"):
            table.add_column(name)
        for name in ("strength", "perpl.", "repeat", "reading", "Δ log p", "coherent"):
            table.add_column(name, justify="right", no_wrap=True)
        for m in self.measurements:
            table.add_row(
                m.concept,
                m.direction,
                span(m.layers),
                f"{m.strength:g}",
                f"{m.perplexity:.1f}",
                f"{m.repetition:.2f}",
                f"{m.projection:+.3f}",
                f"{m.log_probability:+.2f}",
                "yes" if self.coherent(m) else "no",
            )
        return table

    def plot(self, path: Any = None) -> Any:
        """Effect and perplexity over strength, concept against random; a matplotlib figure."""
        return draw(self, path)
