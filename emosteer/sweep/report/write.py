"""Findings as files: a page, tables and pictures."""

from __future__ import annotations

import csv
import math
import os
import re
from pathlib import Path

from .figure import draw
from .findings import Findings
from .page import page

PAGE, CURVES, FAILURES = "report.html", "curves.csv", "failures.csv"


def write(found: Findings, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `report.html`, `curves.csv`, `failures.csv` and a PNG for each panel; returns the paths.

    Raises:
        ImportError: matplotlib is not installed.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / PAGE, target / CURVES, target / FAILURES]
    paths[0].write_text(page(found), encoding="utf-8")
    _write_curves(found, paths[1])
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["metric", "reason", "rows", "example"])
        writer.writerows([f.metric, f.reason, f.rows, f.example] for f in found.failures)
    for number, panel in enumerate(found.panels):
        if any(len(curve.points) for curve in panel.concepts):
            twice = sum(other.metric == panel.metric for other in found.panels) > 1
            path = target / f"{slug(panel.metric)}{f'-{number}' if twice else ''}.png"
            draw(panel, path, found.level)
            paths.append(path)
    return paths


def _write_curves(found: Findings, path: Path) -> None:
    """One line a metric, place and program, controls among them; empty cells where nothing is known."""
    ends = ("mean", "low", "high")
    kinds = ("value", "change", "random_value", "random_change")
    head = ["metric", "positions", "layers", "control", "concept", "strength", "program", "units", "failed"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *(f"{kind}_{end}" for kind in kinds for end in ends), "apart"])
        for panel in found.panels:
            for curve in panel.curves:
                for p in curve.points:
                    numbers = [getattr(getattr(p, kind), end) for kind in kinds for end in ends]
                    place = [panel.metric, panel.positions, panel.layers, curve.control, curve.concept]
                    counts = [_cell(p.strength), p.program, p.units, p.failed]
                    writer.writerow([*place, *counts, *map(_cell, numbers), int(p.apart)])


def slug(name: str) -> str:
    """A file name for a metric."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "metric"


def _cell(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""
