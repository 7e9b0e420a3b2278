"""Metrics of log-probabilities: of given continuations under steering, of the text without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import Measured, Metric, Seen, strings


@dataclass(frozen=True)
class Choices(Metric):
    """See `choices`."""

    options: tuple[str, ...] = ()

    kind: ClassVar[str] = "choices"

    @property
    def continuations(self) -> tuple[str, ...]:
        return self.options

    def definition(self) -> dict[str, Any]:
        return {"options": list(self.options)}

    def measure(self, seen: Seen) -> Measured:
        total = {option: float(seen.continuations[option].double().sum()) for option in self.options}
        among = torch.tensor(list(total.values()), dtype=torch.float64).softmax(0)
        return Measured(float(among[0]), total)


def choices(options: Iterable[str], *, name: str = "choices") -> Choices:
    """Log-probability of each option after the prompt: `values[option] = Σ_t log p(t | prompt, before)`.

    The headline value is the probability of the first option among the options, in [0, 1]. Options are
    tokenised as they are written: most tokenizers want `" A"` after a word and `"A"` after a template.

    Raises:
        TypeError, ValueError: fewer than two options, an empty or repeated one.
    """
    found = strings("options", options)
    if len(found) < 2:
        raise ValueError(f"options must be two at least, got {list(found)}; phrases(…) scores a single one")
    return Choices(name, found)


@dataclass(frozen=True)
class Phrases(Metric):
    """See `phrases`."""

    texts: tuple[tuple[str, str], ...] = ()

    kind: ClassVar[str] = "phrases"

    @property
    def continuations(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for _, text in self.texts))

    def definition(self) -> dict[str, Any]:
        return {"texts": dict(self.texts)}

    def measure(self, seen: Seen) -> Measured:
        total = {label: float(seen.continuations[text].double().sum()) for label, text in self.texts}
        return Measured(sum(total.values()) / len(total), total)


def phrases(texts: Iterable[str] | Mapping[str, str], *, name: str = "phrases") -> Phrases:
    """Log-probability of outcome phrases after the prompt, in nats; the value is their mean.

    Args:
        texts: the phrases, or label → phrase.
        name: the result's `metric`.
    """
    if isinstance(texts, Mapping):
        found = tuple(zip(map(str, texts), strings("texts", texts.values())))
    else:
        found = tuple((text, text) for text in strings("texts", texts))
    return Phrases(name, found)


@dataclass(frozen=True)
class Perplexity(Metric):
    """See `perplexity`."""

    kind: ClassVar[str] = "perplexity"
    needs_text: ClassVar[bool] = True
    needs_likelihood: ClassVar[bool] = True

    def definition(self) -> dict[str, Any]:
        return {}

    def measure(self, seen: Seen) -> Measured:
        scores = seen.text_log_probabilities
        if scores is None or not len(scores):
            raise ValueError("no token was generated, so the text has no perplexity")
        mean = -float(scores.double().mean())
        return Measured(math.exp(min(mean, 700.0)), {"nats_per_token": mean})


def perplexity(*, name: str = "perplexity") -> Perplexity:
    """Perplexity of the generated text under the unsteered model, given the prompt: `exp(−mean log p)`."""
    return Perplexity(name)
