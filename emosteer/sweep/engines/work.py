"""A unit with the metrics that are still missing, and what the runner has found of it so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..metrics.base import Metric, Seen
from ..metrics.row import Row
from ..plan import Plan, Unit
from ..plan.generation import Generation

if TYPE_CHECKING:
    from ..store.done import Done


@dataclass(frozen=True)
class Work:
    """What is left to do of a unit.

    Attributes:
        unit: what to run.
        metrics: those whose results are missing; one at least.
        tokens: its text, where an earlier run has generated it.
    """

    unit: Unit
    metrics: tuple[Metric, ...]
    tokens: tuple[int, ...] | None = None

    @property
    def continuations(self) -> tuple[str, ...]:
        """What the metrics want scored, each once."""
        return tuple(dict.fromkeys(c for metric in self.metrics for c in metric.continuations))

    @property
    def generates(self) -> bool:
        """Whether text must be generated."""
        return self.tokens is None and any(metric.needs_text for metric in self.metrics)

    @property
    def looks_back(self) -> bool:
        """Whether the unsteered model must run over the text."""
        return any(metric.needs_likelihood or metric.kind == "readings" for metric in self.metrics)

    @property
    def needs_model(self) -> bool:
        """Whether there is more to do than to read a text that is there."""
        return bool(self.continuations) or self.generates or self.looks_back


def remaining(
    plan: Plan,
    metrics: Sequence[Metric],
    generation: Generation,
    done: Done,
    text_id: str | None,
    skipped: Callable[[], None] = lambda: None,
) -> Iterator[Work]:
    """The units of a plan that lack a result, one after another.

    Args:
        text_id: id of the metric "text", if the sweep has it.
        skipped: called for each unit that lacks none.
    """
    ids = [(metric, metric.id(generation)) for metric in metrics]
    for unit in plan:
        missing = tuple(metric for metric, id in ids if (unit.id, id) not in done)
        if not missing:
            skipped()
            continue
        tokens = None
        if text_id is not None and any(metric.needs_text for metric in missing):
            tokens = done.tokens(unit.id, text_id)
        yield Work(unit, missing, tokens)


def rows_of(work: Work, seen: Seen, generation: Generation) -> list[Row]:
    """A result for each metric; one that throws gives a failed result with the reason."""
    rows = []
    for metric in work.metrics:
        id = metric.id(generation)
        kept = (seen.text, seen.tokens) if metric.kind == "text" else (None, None)
        try:
            found = metric.measure(seen)
            rows.append(Row(work.unit, metric.name, id, found.value, found.values, None, *kept))
        except Exception as error:
            rows.append(Row(work.unit, metric.name, id, error=reason(error)))
    return rows


def failed_rows(work: Work, error: BaseException, generation: Generation) -> list[Row]:
    """A failed result for each metric: the unit itself could not be run."""
    return [Row(work.unit, m.name, m.id(generation), error=reason(error)) for m in work.metrics]


def reason(error: BaseException) -> str:
    """An exception in one line of at most 500 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
