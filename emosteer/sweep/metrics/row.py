"""One result of a sweep's table: a unit and a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..plan.units import Unit


@dataclass(frozen=True)
class Row:
    """What one metric found for one unit.

    Attributes:
        unit: what was run.
        metric, metric_id: the metric's name and hash (`Metric.id`).
        value, values: its headline number and the named ones; NaN and none where it failed.
        error: why it failed; None where it did not.
        text, tokens: what was generated, in the result of the metric "text" only.
    """

    unit: Unit
    metric: str
    metric_id: str
    value: float = math.nan
    values: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None
