"""Results into parts of the store, now and then; what is reported is on disk."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..metrics.row import Row
from ..store import FolderError, Store
from .progress import SweepProgress

# Seconds between two parts: so much at the start, then one hundredth of the time that has passed, up to a minute.
SOONEST, SHARE, LATEST = 2.0, 0.01, 60.0


class Writer:
    """Gathers results and writes them as parts, now and then; what is reported is on disk."""

    def __init__(self, store: Store, progress: SweepProgress, *, seconds: float | None = None) -> None:
        self.store, self.progress, self._seconds = store, progress, seconds
        self._rows: list[Row] = []
        self._units = 0
        self._start = self._last = time.monotonic()

    def add(self, rows: list[Row]) -> None:
        """The results of one unit."""
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


def write_rows(
    found: Iterable[list[Row]], store: Store, progress: SweepProgress, flush_seconds: float | None
) -> None:
    """Write results as they are found; on an error or Ctrl-C what is finished is written first."""
    writer = Writer(store, progress, seconds=flush_seconds)
    try:
        for rows in found:
            writer.add(rows)
    except FolderError:
        raise
    except BaseException:
        writer.flush()
        raise
    writer.flush()
