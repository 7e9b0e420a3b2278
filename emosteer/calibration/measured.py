"""What was measured over a grid, and the strongest strength that stays coherent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNSTEERED, RANDOM = "unsteered", "random"


@dataclass(frozen=True)
class Measurement:
    """What one direction did at one set of layers and one strength: means over the openings.

    Attributes:
        concept: whose effect is measured.
        direction: the concept, "random" (for each opening a direction drawn uniformly, the same at
            every layer) or "unsteered".
        layers, strength: where and how hard, as `es.steer` takes them.
        perplexity: of the unsteered model on the steered continuations (median).
        repetition: share of 3-grams that occurred before in their continuation.
        projection: of the continuations' tokens on the concept, read by the unsteered model at the
            last steered layer, in units of its mean residual norm, less that of the unsteered text.
        log_probability: of the concept's word after a "feels" sentence, less that of the unsteered
            model; steered.
        text: the first opening's continuation.
    """

    concept: str
    direction: str
    layers: tuple[int, ...]
    strength: float
    perplexity: float
    repetition: float
    projection: float
    log_probability: float
    text: str


@dataclass(frozen=True)
class Measurements:
    """Measurements over a grid, and what counts as coherent.

    Attributes:
        measurements: unsteered, concept and random control for each set of layers and strength.
        max_perplexity: a text is coherent up to this many times the unsteered perplexity,
        max_repetition: and up to this much more repetition than unsteered.
    """

    measurements: tuple[Measurement, ...]
    max_perplexity: float
    max_repetition: float

    def coherent(self, found: Measurement) -> bool:
        """Whether a measurement's text is about as good as unsteered text."""
        plain = next(
            m
            for m in self.measurements
            if m.direction == UNSTEERED and (m.concept, m.layers) == (found.concept, found.layers)
        )
        return (
            found.perplexity <= self.max_perplexity * plain.perplexity
            and found.repetition <= plain.repetition + self.max_repetition
        )

    def strongest(
        self, concept: str | None = None, layers: Sequence[int] | None = None
    ) -> Measurement | None:
        """The strongest measurement before a concept's text first breaks; None if the weakest breaks it.

        With several sets of layers, the one whose word became most likely.
        """
        grid: dict[tuple[int, ...], list[Measurement]] = {}
        for m in self.of(concept):
            if layers is None or m.layers == tuple(layers):
                grid.setdefault(m.layers, []).append(m)
        best = []
        for found in grid.values():
            last = None
            for m in sorted(found, key=lambda m: abs(m.strength)):
                if not self.coherent(m):
                    break
                last = m
            if last is not None:
                best.append(last)
        return max(best, key=lambda m: m.log_probability, default=None)

    @property
    def strength(self) -> float | None:
        """The strength of `strongest()`."""
        best = self.strongest()
        return None if best is None else best.strength

    def of(self, concept: str | None = None) -> list[Measurement]:
        """The measurements of a concept's own direction; of the only concept if none is named."""
        concepts = list(dict.fromkeys(m.concept for m in self.measurements))
        if concept is None:
            if len(concepts) != 1:
                raise ValueError(f"concept must name one of {concepts}: several were calibrated")
            concept = concepts[0]
        if concept not in concepts:
            raise ValueError(f"concept {concept!r} was not calibrated, only {concepts}")
        return [m for m in self.measurements if m.concept == concept and m.direction == concept]


def span(layers: Sequence[int]) -> str:
    """`12-20` for a run of layers, `3,7` for others."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))
