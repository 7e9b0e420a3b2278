"""A reading in the terminal: a table of the strongest concepts, and the text coloured by one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .scores import Scores

# Blue for below the corpus' mean, red for above, as on the page and in the plot.
BLUE, WHITE, RED = (69, 117, 180), (247, 247, 247), (215, 48, 39)


def table(reading: Scores, n: int) -> Any:
    """A rich table, a line a concept."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    out = Table(title=f"strongest concepts ({reading.unit})", box=SIMPLE, pad_edge=False)
    out.add_column("concept")
    for name in ("mean", "max"):
        out.add_column(name, justify="right")
    out.add_column("at token", no_wrap=True)
    turns = [turn for turn in reading.turns if reading.counted(turn.start, turn.stop)]
    counted = reading.counted()
    for turn in turns:
        out.add_column(turn.role, justify="right")
    for name, mean in reading.top(n):
        scores = reading.of(name)
        at = max(counted, key=lambda i: float(scores[i]))
        k = reading.names.index(name)
        by_turn = [f"{float(reading.mean(t.start, t.stop)[k]):+.2f}" for t in turns]
        piece = Text(f"{at}: {reading.tokens[at].strip()!r}")
        out.add_row(name, f"{mean:+.2f}", f"{float(scores[at]):+.2f}", piece, *by_turn)
    return out


def heatmap(reading: Scores, concepts: Sequence[str]) -> Any:
    """The text once a concept, blue below and red above, with its scale."""
    from rich.console import Group
    from rich.text import Text

    parts = []
    for name in concepts:
        scores = reading.of(name)
        counted = set(reading.counted())
        most = max(*(abs(float(scores[i])) for i in counted), 1e-9)
        line = Text()
        for i, piece in enumerate(reading.tokens):
            if i not in counted:
                line.append(piece, style="dim")
            else:
                line.append(piece, style=f"rgb(0,0,0) on rgb{colour(float(scores[i]) / most)}")
        parts.append(Text(f"{name} ({reading.unit}, full colour at ±{most:.2f})", style="bold"))
        parts.append(line)
    return Group(*parts)


def colour(share: float) -> str:
    """`(r,g,b)` of a score in [−1, 1]."""
    end = RED if share > 0 else BLUE
    weight = min(abs(share), 1.0)
    return "(" + ",".join(str(round(w + (e - w) * weight)) for w, e in zip(WHITE, end)) + ")"
