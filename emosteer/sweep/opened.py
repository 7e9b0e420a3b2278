"""The folder of a sweep, opened: its table, how far it is, and a first summary."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .report import Report
from .store import Store
from .store.rows import FAILED


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Attributes:
        units: of the definition.
        done: units that have all of their results.
        rows, failed: results of the present definition, and how many of them failed.
        reasons: the most frequent reasons of failures, with their counts.
        set_aside: files that were no whole parts.
    """

    units: int
    done: int
    rows: int
    failed: int
    reasons: tuple[tuple[str, int], ...]
    set_aside: tuple[str, ...]


class Opened:
    """The results of a sweep in a folder."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manifest: dict[str, Any] = store.manifest()

    def table(self, *, everything: bool = False) -> pa.Table:
        """A pyarrow table, one result a unit and metric; see `Store.table`."""
        return self.store.table(everything=everything)

    def status(self) -> Status:
        """Counts of the results that are on disk now."""
        table = self.table()
        wanted = len(self.manifest["metrics"])
        per_unit = table.group_by("unit", use_threads=False).aggregate([("metric_id", "count")])[
            "metric_id_count"
        ]
        failures = table.filter(pc.equal(table["status"], FAILED))
        counted = (
            failures.group_by("error", use_threads=False)
            .aggregate([("unit", "count")])
            .sort_by([("unit_count", "descending")])
        )
        reasons = tuple(zip(counted["error"].to_pylist()[:5], counted["unit_count"].to_pylist()[:5]))
        return Status(
            self.manifest["units"],
            pc.sum(pc.equal(per_unit, wanted)).as_py() or 0,
            len(table),
            len(failures),
            reasons,
            tuple(self.store.set_aside()),
        )

    def summary(self) -> pa.Table:
        """Mean, standard error and count of each metric's value by control, concept, strength and place.

        The dose–response table: one line a metric, control, concept, strength, layers and positions.
        Failed results and values that are not numbers do not count.
        """
        table = self.table()
        layers = [",".join(map(str, row)) for row in table["layers"].to_pylist()]
        flat = table.select(["metric", "control", "concept", "strength", "positions", "value"])
        flat = flat.append_column("layers", pa.array(layers, pa.string()))
        flat = flat.filter(pc.is_finite(pc.fill_null(flat["value"], math.nan)))
        keys = ["metric", "control", "concept", "strength", "layers", "positions"]
        options = pc.VarianceOptions(ddof=1)
        found = flat.group_by(keys, use_threads=False).aggregate(
            [("value", "mean"), ("value", "stddev", options), ("value", "count")]
        )
        error = pc.divide(found["value_stddev"], pc.sqrt(pc.cast(found["value_count"], pa.float64())))
        result = pa.table(
            {
                **{key: found[key] for key in keys},
                "mean": found["value_mean"],
                "standard_error": error,
                "units": found["value_count"],
            }
        )
        return result.sort_by([(key, "ascending") for key in keys])

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        draws: int = 2000,
        seed: int = 0,
        level: float = 0.95,
    ) -> Report:
        """Dose–response curves with bootstrap intervals and the bands of their controls.

        Args:
            path: a folder to write `report.html`, `curves.csv`, `failures.csv` and pictures to.
            draws, seed: of the bootstrap over prompts.
            level: of the intervals.

        Raises:
            ValueError: draws or level out of range.
        """
        found = Report.of(
            self.table(),
            self.manifest,
            str(self.store),
            self.status().done,
            draws=draws,
            seed=seed,
            level=level,
        )
        if path is not None:
            found.write(path)
        return found
