"""What carries a sweep out. An engine gets what is left to do and yields rows, or writes them itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from .progress import SweepProgress
from .row import Row
from .runner import Runner, Work
from .store import FolderError, Store

# Seconds between two parts: so much at the start, then one hundredth of the time that has passed, up to a minute.
SOONEST, SHARE, LATEST = 2.0, 0.01, 60.0


class Writer:
    """Gathers rows and writes them as parts, now and then; what is reported is on disk."""

    def __init__(self, store: Store, progress: SweepProgress, *, seconds: float | None = None) -> None:
        self.store, self.progress, self._seconds = store, progress, seconds
        self._rows: list[Row] = []
        self._units = 0
        self._start = self._last = time.monotonic()

    def add(self, rows: list[Row]) -> None:
        """The rows of one unit."""
        self._rows += rows
        self._units += 1
        now = time.monotonic()
        wait = min(max(SOONEST, SHARE * (now - self._start)), LATEST)
        if now - self._last >= (wait if self._seconds is None else self._seconds):
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if not self._rows:
            return
        self.store.append(self._rows)
        self.progress.saved(self._units, sum(row.error is not None for row in self._rows))
        self._rows, self._units = [], 0
        self._last = time.monotonic()


def run_local(
    runner: Runner,
    works: Iterable[Work],
    store: Store,
    progress: SweepProgress,
    *,
    flush_seconds: float | None,
) -> None:
    """One model in this process; on an error or Ctrl-C what is finished is written first."""
    writer = Writer(store, progress, seconds=flush_seconds)
    try:
        for rows in runner.run(works):
            writer.add(rows)
    except FolderError:
        raise
    except BaseException:
        writer.flush()
        raise
    writer.flush()


def engine(name: str) -> Callable[..., Any]:
    """The engine of a name.

    Raises:
        ValueError, ImportError: no such engine, or one that cannot be used here, and why.
    """
    if name == "local":
        return run_local
    if name == "ray":
        from .ray_engine import run_ray
        from .ray_engine.cluster import imported

        imported()
        return run_ray
    if name == "vllm":
        raise ValueError(
            'engine "vllm" is not part of this version of emosteer: vLLM steers no row by itself; use engine="local"'
        )
    raise ValueError(f'engine must be "local", "ray" or "vllm", got {name!r}')
