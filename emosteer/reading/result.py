"""What a reading gives: the scores, and the ways to look at them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from . import html, plot, terminal
from .scores import Scores


class Reading(Scores):
    """Scores of every token of a text for every concept; see `Scores`."""

    def table(self, n: int = 10) -> Any:
        """A rich table of the strongest concepts: mean, maximum and the token that has it, mean by turn."""
        return terminal.table(self, n)

    def heatmap(self, concepts: str | Iterable[str] | None = None) -> Any:
        """The text coloured by one or several concepts (the strongest by default), for the terminal (rich)."""
        return terminal.heatmap(self, self._chosen(concepts, 1))

    def plot(self, path: Any = None, concepts: str | Iterable[str] | None = None) -> Any:
        """Tokens × concepts as a matplotlib figure, the 12 strongest by default; written to `path` if given."""
        return plot.draw(self, self._chosen(concepts, 12), path)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page that needs nothing else: the text coloured by a concept of choice, and its time line.

        Returns:
            the page; written to `path` as well if given.
        """
        text = html.page(self)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return text

    def _chosen(self, concepts: str | Iterable[str] | None, n: int) -> Sequence[str]:
        if concepts is None:
            return [name for name, _ in self.top(n)]
        chosen = [concepts] if isinstance(concepts, str) else list(concepts)
        for name in chosen:
            self.of(name)
        return chosen

    def __repr__(self) -> str:
        strongest = ", ".join(f"{name} {value:+.2f}" for name, value in self.top(3))
        size = f"{len(self.tokens)} tokens, {len(self.names)} concepts, layers {list(self.layers)}"
        return f"Reading({size}: {strongest})"
