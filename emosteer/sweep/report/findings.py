"""What a sweep shows, as numbers: its curves and its failures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..store.rows import FAILED
from .curves import Panel, panels

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Failure:
    """Results that failed for one reason.

    Attributes:
        example: prompt and program of the first of them.
    """

    metric: str
    reason: str
    rows: int
    example: str


@dataclass(frozen=True)
class Findings:
    """What a sweep shows.

    Attributes:
        folder, model: of the sweep.
        units, done: of its definition, and those that have all of their results.
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

    @classmethod
    def of(
        cls,
        table: pa.Table,
        manifest: dict[str, Any],
        folder: str,
        done: int,
        *,
        draws: int = 2000,
        seed: int = 0,
        level: float = 0.95,
    ) -> Self:
        """What the results of a sweep show.

        Args:
            table, manifest, folder: of the sweep.
            done: units that have all of their results.
            draws, seed: of the bootstrap over prompts.
            level: of the intervals.

        Raises:
            ValueError: draws or level out of range.
        """
        if not isinstance(draws, int) or draws < 100:
            raise ValueError(f"draws must be an integer of at least 100, got {draws!r}")
        if not 0.5 <= level < 1:
            raise ValueError(f"level must lie in [0.5, 1), got {level!r}")
        metrics = {entry["name"]: entry for entry in manifest["metrics"].values()}
        kinds = {name: entry["kind"] for name, entry in metrics.items()}
        name = manifest["model"]["name"] or "a model given as an object"
        return cls(
            folder,
            os.path.basename(name.rstrip("/")) if os.path.isabs(name) else name,
            manifest["units"],
            done,
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
