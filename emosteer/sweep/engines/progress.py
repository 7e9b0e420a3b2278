"""How far a sweep is: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


class SweepProgress:
    """Counts units that are safe on disk.

    Args:
        total: units of the sweep.
        show: whether to say anything.
        stream: where to; a terminal gets a live display, anything else a line now and then.
    """

    # Seconds between two plain lines.
    EVERY = 10.0

    def __init__(self, total: int, *, show: bool = True, stream: TextIO | None = None) -> None:
        self.total, self.before, self.show = total, 0, show
        self.stream = stream or sys.stderr
        self.units = self.failed = 0
        self._start = self._said = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> SweepProgress:
        self._start = self._said = time.monotonic()
        if self.show and self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self._renderable, console=Console(file=self.stream), refresh_per_second=4
            )
            self._live.__enter__()
        elif self.show:
            self._say()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.__exit__(*_error)
        elif self.show:
            self._say()

    def skipped(self) -> None:
        """One more unit was finished by an earlier run."""
        self.before += 1

    def saved(self, units: int, failed: int) -> None:
        """So many more units are on disk, with so many failed results."""
        self.units += units
        self.failed += failed
        if self._live is None and self.show and time.monotonic() - self._said >= self.EVERY:
            self._say()

    @property
    def rate(self) -> float:
        """Units a second of this run."""
        return self.units / max(time.monotonic() - self._start, 1e-9)

    def line(self) -> str:
        """`1,204 of 4,104 units · 35.1/s · 1 min 22 s left · 0 failed`."""
        done = self.before + self.units
        parts = [f"{done:,} of {max(self.total, done):,} units"]
        if self.units:
            parts.append(f"{self.rate:.1f}/s")
            parts.append(
                f"{_duration((self.total - done) / self.rate)} left" if done < self.total else "done"
            )
        parts.append(f"{self.failed:,} failed")
        return " · ".join(parts)

    def _say(self) -> None:
        self._said = time.monotonic()
        print(self.line(), file=self.stream, flush=True)

    def _renderable(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 1))
        done = self.before + self.units
        grid.add_row(ProgressBar(total=max(self.total, done, 1), completed=done, width=30), self.line())
        return grid


def _duration(seconds: float) -> str:
    seconds = max(round(seconds), 0)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
