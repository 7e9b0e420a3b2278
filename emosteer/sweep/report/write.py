"""The report of a folder, and the files it is written to."""

from __future__ import annotations

import csv
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from ..store.rows import FAILED
from .curves import Panel, panels

if TYPE_CHECKING:
    from ..opened import Opened

PAGE, CURVES, FAILURES = "report.html", "curves.csv", "failures.csv"


@dataclass(frozen=True)
class Failure:
    """Rows that failed for one reason.

    Attributes:
        example: prompt and program of the first of them.
    """

    metric: str
    reason: str
    rows: int
    example: str


@dataclass(frozen=True)
class Report:
    """What a sweep shows.

    Attributes:
        folder, model: of the sweep.
        units, done: of its definition, and those that have all of their rows.
        panels: the curves of each metric at each place.
        failures: reasons, the most frequent first.
        metrics: name → kind and definition.
        draws, level: of the intervals.
    """

    folder: str
    model: str
    units: int
    done: int
    panels: tuple[Panel, ...]
    failures: tuple[Failure, ...]
    metrics: dict[str, dict[str, Any]]
    draws: int
    level: float

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `report.html`, `curves.csv`, `failures.csv` and a PNG for each panel; returns the paths.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .figure import draw
        from .page import page

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        found = [target / PAGE, target / CURVES, target / FAILURES]
        found[0].write_text(page(self), encoding="utf-8")
        self._write_curves(found[1])
        with found[2].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["metric", "reason", "rows", "example"])
            writer.writerows([f.metric, f.reason, f.rows, f.example] for f in self.failures)
        for number, panel in enumerate(self.panels):
            if any(len(curve.points) for curve in panel.concepts):
                twice = sum(other.metric == panel.metric for other in self.panels) > 1
                path = target / f"{slug(panel.metric)}{f'-{number}' if twice else ''}.png"
                draw(panel, path, self.level)
                found.append(path)
        return found

    def _write_curves(self, path: Path) -> None:
        """One line a metric, place and program, controls among them; empty cells where nothing is known."""
        ends = ("mean", "low", "high")
        kinds = ("value", "change", "random_value", "random_change")
        head = [
            "metric",
            "positions",
            "layers",
            "control",
            "concept",
            "strength",
            "program",
            "units",
            "failed",
        ]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*head, *(f"{kind}_{end}" for kind in kinds for end in ends), "apart"])
            for panel in self.panels:
                for curve in panel.curves:
                    for p in curve.points:
                        numbers = [getattr(getattr(p, kind), end) for kind in kinds for end in ends]
                        place = [panel.metric, panel.positions, panel.layers, curve.control, curve.concept]
                        counts = [_cell(p.strength), p.program, p.units, p.failed]
                        writer.writerow([*place, *counts, *map(_cell, numbers), int(p.apart)])


def report(found: Opened, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Report:
    """The report of a sweep's folder.

    Args:
        found: the folder.
        draws, seed: of the bootstrap over prompts.
        level: of the intervals.

    Raises:
        ValueError: draws or level out of range.
    """
    if not isinstance(draws, int) or draws < 100:
        raise ValueError(f"draws must be an integer of at least 100, got {draws!r}")
    if not 0.5 <= level < 1:
        raise ValueError(f"level must lie in [0.5, 1), got {level!r}")
    table = found.table()
    manifest = found.manifest
    metrics = {entry["name"]: entry for entry in manifest["metrics"].values()}
    kinds = {name: entry["kind"] for name, entry in metrics.items()}
    name = manifest["model"]["name"] or "a model given as an object"
    return Report(
        str(found.store),
        os.path.basename(name.rstrip("/")) if os.path.isabs(name) else name,
        manifest["units"],
        found.status().done,
        tuple(panels(table, kinds, draws=draws, seed=seed, level=level)),
        tuple(_failures(table)),
        metrics,
        draws,
        level,
    )


def _failures(table: Any) -> list[Failure]:
    failed = table.filter(pc.equal(table["status"], FAILED)).select(["metric", "error", "prompt", "program"])
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in failed.to_pylist():
        rows.setdefault((row["metric"], row["error"]), []).append(row)
    found = [
        Failure(metric, why, len(some), f"prompt {some[0]['prompt']} under {some[0]['program']}")
        for (metric, why), some in rows.items()
    ]
    return sorted(found, key=lambda failure: -failure.rows)


def slug(name: str) -> str:
    """A file name for a metric."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "metric"


def _cell(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""
