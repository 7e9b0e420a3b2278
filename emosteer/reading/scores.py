"""Scores of a text: every token for every concept, and their summaries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from emosteer.models.chat import Span

UNITS = {"z": "z-score over the corpus", "projection": "projection, in mean residual norms"}


@dataclass(frozen=True)
class Scores:
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
