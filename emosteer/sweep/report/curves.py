"""Results of a sweep → dose–response curves with intervals, and the bands of their controls."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..plan.arms import RANDOM, UNSTEERED
from ..store.rows import FAILED
from .bootstrap import Bootstrap, Estimates


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; NaN where there is nothing to say (the interval of a single prompt, say)."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Point:
    """What one program did.

    Attributes:
        strength: NaN of a program that does not push along one direction.
        program: it, in words.
        units, failed: values that count, and failed results.
        value: the metric's mean.
        change: the mean difference from the same prompt and seed without steering.
        random_value, random_change: means of `value` and `change` of the same program on random
            directions; low and high are the lowest and highest ends of the single directions' intervals.
    """

    strength: float
    program: str
    units: int
    failed: int
    value: Estimate
    change: Estimate
    random_value: Estimate = Estimate()
    random_change: Estimate = Estimate()

    @property
    def apart(self) -> bool:
        """Whether the change's interval holds neither 0 nor anything of the random band."""
        change, band = self.change, self.random_change
        return (change.low > 0 and not change.low <= band.high) or (
            change.high < 0 and not change.high >= band.low
        )


@dataclass(frozen=True)
class Curve:
    """The points of one concept, by strength; with the unsteered mean of the same metric."""

    concept: str
    control: str
    points: tuple[Point, ...]
    unsteered: Estimate

    @property
    def reach(self) -> float:
        """The largest change, by size; 0 where none is known."""
        return max((abs(p.change.mean) for p in self.points if math.isfinite(p.change.mean)), default=0.0)


@dataclass(frozen=True)
class Panel:
    """The curves of one metric at one place, those of concepts first, the widest reach first."""

    metric: str
    positions: str
    layers: str
    curves: tuple[Curve, ...]

    @property
    def concepts(self) -> list[Curve]:
        """The curves of what is studied, controls left out."""
        return [curve for curve in self.curves if not curve.control]


@dataclass(frozen=True)
class _Rows:
    """Columns of the results of one metric and place, as numpy arrays of one length."""

    control: Any
    concept: Any
    program: Any
    program_id: Any
    strength: Any
    prompt: Any
    seed: Any
    value: Any
    failed: Any

    def __getitem__(self, which: Any) -> _Rows:
        return _Rows(**{name: column[which] for name, column in self.__dict__.items()})


def panels(
    table: pa.Table, kinds: Mapping[str, str], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Panel]:
    """The curves of each metric at each place.

    Args:
        table: of `Store.table`.
        kinds: of the metrics, by name. A "readings" control is read at the concept it is compared with.
        draws, seed, level: of the bootstrap.
    """
    layers = pa.array([_span(row) for row in table["layers"].to_pylist()], pa.string())
    table = table.append_column("place", layers)
    found = []
    for metric in dict.fromkeys(table["metric"].to_pylist()):
        of_metric = table.filter(pc.equal(table["metric"], metric))
        steered = of_metric.filter(pc.not_equal(of_metric["control"], UNSTEERED))
        places = dict.fromkeys(zip(steered["positions"].to_pylist(), steered["place"].to_pylist()))
        for positions, place in places or {("", ""): None}:
            here = pc.and_(pc.equal(of_metric["positions"], positions), pc.equal(of_metric["place"], place))
            rows = of_metric.filter(pc.or_(here, pc.equal(of_metric["control"], UNSTEERED)))
            curves = [
                curve
                for part in _parts(rows, kinds.get(metric) == "readings")
                for curve in _curves(part, draws, seed, level)
            ]
            curves.sort(key=lambda curve: (bool(curve.control), -curve.reach, curve.concept))
            found.append(Panel(metric, positions, place, tuple(curves)))
    return found


def _span(layers: list[int]) -> str:
    """`12–21`, or `3,7,11`."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ",".join(map(str, layers))


def _parts(table: pa.Table, readings: bool) -> Iterator[_Rows]:
    """The results as they are; of readings, for each concept its own results and the controls read at it."""
    column = {
        name: table[name].to_numpy(zero_copy_only=False)
        for name in ("control", "concept", "program", "program_id", "strength", "prompt", "seed", "value")
    }
    rows = _Rows(**column, failed=pc.equal(table["status"], FAILED).to_numpy(zero_copy_only=False))
    if not readings:
        yield rows
        return
    controls = np.flatnonzero(rows.control != "")
    read = [{v["name"]: v["value"] for v in row} for row in table["values"].take(controls).to_pylist()]
    for concept in dict.fromkeys(rows.concept[rows.control == ""]):
        own = rows[np.flatnonzero(rows.concept == concept)]
        at = replace(rows[controls], value=np.array([values.get(concept, math.nan) for values in read]))
        part = _Rows(
            **{name: np.concatenate([getattr(own, name), getattr(at, name)]) for name in own.__dict__}
        )
        yield part


def _curves(rows: _Rows, draws: int, seed: int, level: float) -> list[Curve]:
    if not len(rows.value):
        return []
    counts = ~rows.failed & np.isfinite(rows.value)
    pair = _codes(rows.prompt, rows.seed)
    cluster = _codes(rows.prompt)
    if cluster.max() == 0:  # one prompt: its seeds are all there is to draw from
        cluster = pair
    arm = _codes(rows.control, rows.concept, rows.program_id, rows.program)
    first = np.unique(arm, return_index=True)[1]
    plain = counts & (rows.control == UNSTEERED)
    change = rows.value - _means(pair, rows.value, plain)[pair]
    bootstrap = Bootstrap(int(cluster.max()) + 1, draws=draws, seed=seed, level=level)
    value = _estimates(bootstrap, cluster, arm, rows.value, counts)
    moved = _estimates(bootstrap, cluster, arm, change, counts & np.isfinite(change))
    units = np.bincount(arm, counts, len(first)).astype(int)
    failed = np.bincount(arm, rows.failed, len(first)).astype(int)

    points = [
        Point(
            float(rows.strength[k]),
            str(rows.program[k]),
            int(units[a]),
            int(failed[a]),
            _at(value, a),
            _at(moved, a),
        )
        for a, k in enumerate(first)
    ]
    control, concept = rows.control[first], rows.concept[first]
    shapes = np.array([_shape(*arm) for arm in zip(rows.program[first], concept, control)])
    bands = {
        which: (
            _band([points[a].value for a in np.flatnonzero((control == RANDOM) & (shapes == which))]),
            _band([points[a].change for a in np.flatnonzero((control == RANDOM) & (shapes == which))]),
        )
        for which in set(shapes)
    }
    unsteered = next((points[a].value for a in np.flatnonzero(control == UNSTEERED)), Estimate())
    by: dict[tuple[str, str], list[Point]] = {}
    for a, point in enumerate(points):
        if not control[a]:
            point = replace(point, random_value=bands[shapes[a]][0], random_change=bands[shapes[a]][1])
        by.setdefault((concept[a], control[a]), []).append(point)
    return [
        Curve(
            name,
            of,
            tuple(sorted(some, key=lambda p: (math.isnan(p.strength), p.strength, p.program))),
            unsteered,
        )
        for (name, of), some in by.items()
    ]


def _estimates(bootstrap: Bootstrap, cluster: Any, arm: Any, value: Any, counts: Any) -> Estimates:
    size = (int(cluster.max()) + 1, int(arm.max()) + 1)
    sums, number = np.zeros(size), np.zeros(size)
    np.add.at(sums, (cluster[counts], arm[counts]), value[counts])
    np.add.at(number, (cluster[counts], arm[counts]), 1.0)
    return bootstrap.estimates(sums, number)


def _at(estimates: Estimates, a: int) -> Estimate:
    return Estimate(float(estimates.mean[a]), float(estimates.low[a]), float(estimates.high[a]))


def _band(some: list[Estimate]) -> Estimate:
    """From the lowest to the highest end of several directions' intervals: any one direction may lie there."""
    known = [e for e in some if math.isfinite(e.mean)]
    if not known:
        return Estimate()
    ends = [v for e in known for v in (e.mean, e.low, e.high) if math.isfinite(v)]
    return Estimate(sum(e.mean for e in known) / len(known), min(ends), max(ends))


def _means(codes: Any, value: Any, counts: Any) -> Any:
    """Mean of the values that count, by code; NaN where there is none."""
    size = int(codes.max()) + 1
    with np.errstate(invalid="ignore"):
        return np.bincount(codes[counts], value[counts], size) / np.bincount(codes[counts], minlength=size)


def _codes(*columns: Any) -> Any:
    """int64: equal rows of the columns have equal codes, from 0."""
    found = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, codes = np.unique(column, return_inverse=True)
        _, found = np.unique(found * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)
    return found


def _shape(program: str, concept: str, control: str) -> str:
    """A program without its names: what it has in common with its random controls."""
    if control == RANDOM:
        return re.sub(rf"{RANDOM} \d+(?:\.(\d+))?", lambda m: f"<{m[1] or 0}>", program)
    names = list(dict.fromkeys(concept.split("+")))
    for name in sorted(names, key=len, reverse=True):
        program = re.sub(rf"(?<![\w<]){re.escape(name)}(?!\w)", f"<{names.index(name)}>", program)
    return program
