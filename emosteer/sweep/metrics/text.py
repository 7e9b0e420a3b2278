"""Metrics of the generated text: itself, patterns, lexicon, classifier, a judge of one's own, repetition."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

from emosteer.models.scoring import repetition as share_repeated

from ..plan.identity import digest
from .base import Measured, Metric, Seen


@dataclass(frozen=True)
class _OfText(Metric):
    needs_text: ClassVar[bool] = True


@dataclass(frozen=True)
class Text(_OfText):
    """See `text`."""

    kind: ClassVar[str] = "text"

    def definition(self) -> dict[str, Any]:
        return {}

    def measure(self, seen: Seen) -> Measured:
        return Measured(float(len(seen.tokens or ())))


def text(*, name: str = "text") -> Text:
    """The generated text itself, in the result's `text` and `tokens`; the value is the number of tokens.

    A sweep with any metric that reads text has this one too: what is kept need not be generated again.
    """
    return Text(name)


@dataclass(frozen=True)
class Regex(_OfText):
    """See `regex`."""

    pattern: str = ""
    ignore_case: bool = True

    kind: ClassVar[str] = "regex"

    def definition(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "ignore_case": self.ignore_case}

    def measure(self, seen: Seen) -> Measured:
        found = re.findall(self.pattern, seen.text or "", re.IGNORECASE if self.ignore_case else 0)
        return Measured(float(bool(found)), {"count": float(len(found))})


def regex(pattern: str, *, ignore_case: bool = True, name: str = "regex") -> Regex:
    """1 where a pattern occurs in the text, else 0; `values["count"]` says how often.

    Raises:
        ValueError: not a regular expression.
    """
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"pattern must be a regular expression, got {pattern!r}: {error}") from None
    return Regex(name, pattern, ignore_case)


@dataclass(frozen=True)
class Lexicon(_OfText):
    """See `lexicon`."""

    kind: ClassVar[str] = "lexicon"

    def definition(self) -> dict[str, Any]:
        return {}

    def measure(self, seen: Seen) -> Measured:
        scores = dict(self._analyser.polarity_scores(seen.text or ""))
        return Measured(float(scores.pop("compound")), {k: float(v) for k, v in scores.items()})

    @cached_property
    def _analyser(self) -> Any:
        return _vader()


def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ImportError('the lexicon metric needs vaderSentiment: pip install "emosteer[sweep]"') from None
    return SentimentIntensityAnalyzer()


def lexicon(*, name: str = "lexicon") -> Lexicon:
    """Sentiment of the text by the VADER lexicon (Hutto and Gilbert, 2014): the compound score in [−1, 1].

    Raises:
        ImportError: vaderSentiment is not installed.
    """
    _vader()
    return Lexicon(name)


@dataclass(frozen=True)
class Classifier(_OfText):
    """See `classifier`."""

    model: str = ""
    label: str | None = None
    revision: str | None = None

    kind: ClassVar[str] = "classifier"

    def definition(self) -> dict[str, Any]:
        return {"model": self.model, "label": self.label, "revision": self.revision}

    def measure(self, seen: Seen) -> Measured:
        scores = {one["label"]: float(one["score"]) for one in self._pipeline(seen.text or "", top_k=None)}
        label = self.label if self.label is not None else max(scores, key=lambda key: scores[key])
        if label not in scores:
            raise ValueError(f"the classifier has no label {label!r}, only {sorted(scores)}")
        return Measured(scores[label], scores)

    @cached_property
    def _pipeline(self) -> Any:
        from transformers import pipeline

        return pipeline("text-classification", model=self.model, revision=self.revision, truncation=True)


def classifier(
    model: str, *, label: str | None = None, revision: str | None = None, name: str = "classifier"
) -> Classifier:
    """Scores of a text-classification model of transformers, loaded when it is first needed.

    Args:
        model: a folder or a Hub id.
        label: whose score is the headline value; None: the most likely one's.
        revision: of a Hub id.
        name: the result's `metric`.
    """
    if not isinstance(model, str) or not model:
        raise TypeError(f"model must be a folder or a Hub id, got {model!r}; judge(…) takes a function")
    return Classifier(name, model, label, revision)


@dataclass(frozen=True)
class Judge(_OfText):
    """See `judge`."""

    code: str = ""
    where: str | None = None
    function: Callable[..., Any] = field(default=len, compare=False)

    kind: ClassVar[str] = "judge"

    def definition(self) -> dict[str, Any]:
        return {"function": self.where, "code": self.code}

    def measure(self, seen: Seen) -> Measured:
        takes_prompt = len(inspect.signature(self.function).parameters) > 1
        verdict = self.function(*([seen.unit.prompt.text] if takes_prompt else []), seen.text)
        if isinstance(verdict, Mapping):
            values = {str(key): float(value) for key, value in verdict.items()}
            return Measured(values.get("value", next(iter(values.values()))), values)
        return Measured(float(verdict))


def judge(
    function: Callable[..., Any] | str, *, version: str | None = None, name: str | None = None
) -> Judge:
    """A function of one's own: `function(text)` or `function(prompt, text)`.

    It returns a number, a bool or a mapping of numbers, of which "value", else the first, is the
    headline. What it raises is the result's reason.

    Args:
        function: the function, or "package.module:function", which a YAML file can say.
        version: what its results depend on; None: its source code, so that an edited judge judges anew.
        name: the result's `metric`; None: the function's name.

    Raises:
        TypeError, ValueError, ImportError: no function, or none there.
    """
    where = None
    if isinstance(function, str):
        where = function
        module, _, path = function.partition(":")
        if not module or not path:
            raise ValueError(f'function must read "package.module:function", got {function!r}')
        function = getattr(import_module(module), path, None)  # type: ignore[assignment]
        if function is None:
            raise ValueError(f"module {module} has no {path!r}")
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    called = getattr(function, "__name__", type(function).__name__)
    return Judge(name or called, version or _code(function), where, function)


def _code(function: Callable[..., Any]) -> str:
    try:
        source = inspect.getsource(function)
        code = inspect.unwrap(function).__code__  # tells two lambdas of one line apart
        return digest(
            source, [repr(c) for c in code.co_consts if not inspect.iscode(c)], code.co_names, size=8
        )
    except (OSError, TypeError, AttributeError):
        raise ValueError(
            f"the source code of {function!r} cannot be read, so a later run could not tell whether it is the same "
            f"judge; pass version=…"
        ) from None


@dataclass(frozen=True)
class Repetition(_OfText):
    """See `repetition`."""

    n: int = 3

    kind: ClassVar[str] = "repetition"

    def definition(self) -> dict[str, Any]:
        return {"n": self.n}

    def measure(self, seen: Seen) -> Measured:
        return Measured(share_repeated(seen.tokens or (), self.n))


def repetition(n: int = 3, *, name: str = "repetition") -> Repetition:
    """The share of the text's n-grams of tokens that occurred before in it: 0 none, near 1 a loop."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}")
    return Repetition(name, n)
