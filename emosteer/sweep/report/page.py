"""A report as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

from emosteer._version import __version__

from .curves import Estimate, Point
from .findings import Findings


def page(found: Findings) -> str:
    """The page of `page.html` with its numbers in it, to six digits."""
    content = {
        "version": __version__,
        "folder": found.folder,
        "model": found.model,
        "units": found.units,
        "done": found.done,
        "level": found.level,
        "draws": found.draws,
        "metrics": {
            name: " ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items())
            for name, entry in found.metrics.items()
        },
        "panels": [
            {
                "metric": panel.metric,
                "positions": panel.positions,
                "layers": panel.layers,
                "curves": [
                    {
                        "concept": curve.concept,
                        "unsteered": _estimate(curve.unsteered),
                        "points": [_point(point) for point in curve.points],
                    }
                    for curve in panel.concepts
                ],
            }
            for panel in found.panels
            if panel.concepts
        ],
        "failures": [[f.metric, f.reason, f.rows, f.example] for f in found.failures],
    }
    # "<" would let a text close the script that carries it
    embedded = json.dumps(content, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return (
        files(__package__).joinpath("page.html").read_text(encoding="utf-8").replace("__REPORT__", embedded)
    )


def _point(point: Point) -> dict[str, Any]:
    return {
        "strength": _number(point.strength),
        "program": point.program,
        "units": point.units,
        "failed": point.failed,
        "apart": point.apart,
        "value": _estimate(point.value),
        "change": _estimate(point.change),
        "random_value": _estimate(point.random_value),
        "random_change": _estimate(point.random_change),
    }


def _estimate(estimate: Estimate) -> list[float | None]:
    return [_number(estimate.mean), _number(estimate.low), _number(estimate.high)]


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
