"""What a metric is: what it needs of a unit, and what it makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from ..plan.identity import digest
from ..plan.units import Unit


@dataclass
class Seen:
    """What the runner saw of a unit; only what its metrics asked for.

    Attributes:
        unit: prompt, program, seed, positions, layers.
        continuations: text of a continuation → float32 `[n]`, log-probability of each of its tokens
            under the steered model, given the prompt and the tokens before.
        text, tokens: what was generated, without the token that ends a text.
        text_log_probabilities: float32 `[n]` of its tokens under the unsteered model, given the prompt.
        projections: reading metric's id → float32 `[K]`, mean projection of the text's tokens.
    """

    unit: Unit
    continuations: dict[str, Tensor] = field(default_factory=dict)
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    text_log_probabilities: Tensor | None = None
    projections: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A metric's outcome: the headline number, and named ones."""

    value: float
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(ABC):
    """A metric: what it needs, and what it makes of it.

    Subclasses are frozen dataclasses; their fields are the definition, which is hashed.

    Attributes:
        name: the result's `metric` in the table.
        continuations: texts whose log-probabilities it needs.
        needs_text: whether the unit's text must be generated.
        needs_likelihood: whether the unsteered model must score that text.
    """

    name: str

    kind: ClassVar[str] = ""
    needs_text: ClassVar[bool] = False
    needs_likelihood: ClassVar[bool] = False

    @property
    def continuations(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def definition(self) -> dict[str, Any]:
        """What determines the outcome, beside the unit, as JSON holds it; keyword arguments of the maker."""

    @abstractmethod
    def measure(self, seen: Seen) -> Measured:
        """The outcome for a unit; whatever it raises becomes the result's reason."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the definition."""
        return digest(self.kind, self.name, self.definition(), size=8)

    def id(self, generation: Any) -> str:
        """Hex digest of what determines the result: with the generation settings where text is read."""
        return (
            digest(self.fingerprint, generation.definition(), size=8) if self.needs_text else self.fingerprint
        )


def strings(argument: str, given: Any) -> tuple[str, ...]:
    """A tuple of texts that are not empty.

    Raises:
        TypeError, ValueError: names the argument.
    """
    if isinstance(given, str):
        raise TypeError(f"{argument} must be a list of texts, got the single text {given!r}")
    found = tuple(given)
    for number, item in enumerate(found):
        if not isinstance(item, str) or not item:
            raise TypeError(f"{argument}[{number}] must be a text that is not empty, got {item!r}")
    if not found:
        raise ValueError(f"{argument} is empty")
    if len(set(found)) < len(found):
        raise ValueError(f"{argument} has a text twice")
    return found
