"""Pieces of work: how many units one has, and how it travels."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...metrics import Metric
from ..work import Work
from ..writer import LATEST, SHARE, SOONEST

# Units of the first tasks, before their speed is known.
FIRST = 16

# Parts a second of all workers together, that the folder is asked to take.
PARTS_PER_SECOND = 20

# How often a task may lose its worker before it is halved; a single unit is then given up.
TRIES = 2


@dataclass
class Task:
    """Neighbouring units that one worker runs and writes as one part.

    Attributes:
        lost: how many workers died over it.
    """

    works: list[Work]
    lost: int = 0

    def halves(self) -> list[Task]:
        """Two tasks in its place, each of which loses no worker more before it is halved again."""
        middle = len(self.works) // 2
        return [Task(some, self.lost) for some in (self.works[:middle], self.works[middle:]) if some]


class Tasks:
    """The tasks of a run: what came back first, then the stream. Their size follows the measured speed.

    A task lasts about as long as the local engine waits between two parts, longer with many workers, so
    that the folder takes at most `PARTS_PER_SECOND`; towards the end tasks shrink, so that all workers
    end together.

    Args:
        works: the stream.
        total: units to come, about.
        workers: how many run.
        units: of a task, always; None: by time.
        seconds: of a task; None: as said.
        clock: seconds; a simulation has its own.
    """

    def __init__(
        self,
        works: Iterator[Work],
        total: int,
        workers: int,
        units: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.works, self.total, self.workers = works, total, workers
        self.units, self.seconds = units, seconds
        self.back: deque[Task] = deque()
        self.taken = 0
        self._speed: float | None = None  # units a second of one worker
        self._clock, self._start = clock, clock()

    def next(self) -> Task | None:
        """The next one, None where nothing is left."""
        if self.back:
            return self.back.popleft()
        some = list(islice(self.works, self.size()))
        self.taken += len(some)
        return Task(some) if some else None

    def size(self) -> int:
        """Units of the next task from the stream."""
        if self.units is not None:
            return self.units
        wanted = FIRST if self._speed is None else round(self._speed * self.duration())
        share = max(self.total - self.taken, 0) // (2 * self.workers)
        return max(min(wanted, max(share, 1)), 1)

    def duration(self) -> float:
        """Seconds that a task is to take."""
        if self.seconds is not None:
            return self.seconds
        passed = self._clock() - self._start
        return max(min(max(SOONEST, SHARE * passed), LATEST), self.workers / PARTS_PER_SECOND)

    def took(self, units: int, seconds: float) -> None:
        """Note how fast a worker was."""
        speed = units / max(seconds, 1e-3)
        self._speed = speed if self._speed is None else 0.7 * self._speed + 0.3 * speed


class MetricShelf:
    """Metrics, put into Ray's object store once each: a reading holds a whole bank."""

    def __init__(self, ray: Any) -> None:
        self._put = ray.put
        self._refs: dict[str, Any] = {}

    def packed(self, works: list[Work]) -> tuple[list[tuple[Any, tuple[str, ...], Any]], dict[str, Any]]:
        """`(unit, names of its metrics, tokens)` of each work, and where the metrics are, by name."""
        coded, refs = [], {}
        for work in works:
            for metric in work.metrics:
                if metric.name not in self._refs:
                    self._refs[metric.name] = self._put(metric)
                refs[metric.name] = self._refs[metric.name]
            coded.append((work.unit, tuple(metric.name for metric in work.metrics), work.tokens))
        return coded, refs


class MetricsSeen:
    """The worker's side of `MetricShelf`."""

    def __init__(self, ray: Any) -> None:
        self._get = ray.get
        self._known: dict[str, Metric] = {}

    def unpacked(self, coded: list[tuple[Any, tuple[str, ...], Any]], refs: dict[str, Any]) -> list[Work]:
        for name, ref in refs.items():
            if name not in self._known:
                self._known[name] = self._get(ref)
        return [
            Work(unit, tuple(self._known[name] for name in names), tokens) for unit, names, tokens in coded
        ]
