"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """`with Progress(True) as bar: bar.begin("stories", 684); bar.advance(32)`.

    Args:
        show: whether to draw, where standard error is a terminal.
    """

    def __init__(self, show: bool) -> None:
        self._show = show and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def begin(self, what: str, total: int | None) -> None:
        """Start counting something else; `total` None where nobody knows."""
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total)

    def advance(self, n: int) -> None:
        """`n` more are done."""
        if self._bar is not None:
            self._bar.advance(self._task, n)

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
