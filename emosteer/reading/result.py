"""What a reading found, and its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from emosteer.models.chat import Span

UNITS = {"z": "z-score over the corpus", "projection": "projection, in mean residual norms"}


@dataclass(frozen=True)
class Reading:
    """Scores of every token of a text for every concept.

    Attributes:
        text: what was read, a chat with its template's marks.
        tokens: T strings, the pieces of the text; "" for a token that completes a character.
        turns: for a chat, which tokens each message has.
        names: the K concepts.
        scores: float32 `[T, K]`, averaged over the layers.
        by_layer: layer → float32 `[T, K]`.
        unit: "z" or "projection".
        skip_tokens: tokens at the start that summaries and colours leave out.

    Summaries are over the tokens that count: those after the skipped ones and, in a chat, those of the
    messages themselves.
    """

    text: str
    tokens: tuple[str, ...]
    turns: tuple[Span, ...]
    names: tuple[str, ...]
    scores: Tensor
    by_layer: dict[int, Tensor]
    unit: str
    skip_tokens: int

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were read."""
        return tuple(self.by_layer)

    def of(self, concept: str) -> Tensor:
        """float32 `[T]`: the scores of one concept.

        Raises:
            ValueError: it was not read.
        """
        if concept not in self.names:
            raise ValueError(f"concept {concept!r} was not read, only {', '.join(self.names)}")
        return self.scores[:, self.names.index(concept)]

    def counted(self, start: int | None = None, stop: int | None = None) -> list[int]:
        """The tokens of `[start, stop)` that count, by number."""
        here = range(len(self.tokens))[start:stop]
        in_turn = {i for turn in self.turns for i in range(turn.start, turn.stop)}
        return [i for i in here if i >= self.skip_tokens and (not self.turns or i in in_turn)]

    def mean(self, start: int | None = None, stop: int | None = None) -> Tensor:
        """float32 `[K]`: mean over the tokens of `[start, stop)` that count.

        Raises:
            ValueError: none does.
        """
        at = self.counted(start, stop)
        if not at:
            raise ValueError(
                f"no token of [{start}, {stop}) counts, of the {len(self.tokens)} that were read"
            )
        return self.scores[at].mean(0)

    def top(
        self, n: int = 5, *, start: int | None = None, stop: int | None = None
    ) -> list[tuple[str, float]]:
        """The `n` concepts with the highest mean over tokens `[start, stop)`, with it."""
        values, at = self.mean(start, stop).topk(min(n, len(self.names)))
        return [(self.names[k], float(v)) for k, v in zip(at.tolist(), values)]

    def table(self, n: int = 10) -> Any:
        """A rich table of the strongest concepts: mean, maximum and the token that has it, mean by turn."""
        from .terminal import table

        return table(self, n)

    def heatmap(self, concepts: str | Iterable[str] | None = None) -> Any:
        """The text coloured by one or several concepts (the strongest by default), for the terminal (rich)."""
        from .terminal import heatmap

        return heatmap(self, self._chosen(concepts, 1))

    def plot(self, path: Any = None, concepts: str | Iterable[str] | None = None) -> Any:
        """Tokens × concepts as a matplotlib figure, the 12 strongest by default; written to `path` if given."""
        from .plot import draw

        return draw(self, self._chosen(concepts, 12), path)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page that needs nothing else: the text coloured by a concept of choice, and its time line.

        Returns:
            the page; written to `path` as well if given.
        """
        from .html import page

        text = page(self)
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
