"""The driver: units in this process's batches, results into the store."""

from __future__ import annotations

from collections.abc import Iterable

from ...definition import Definition
from ...store import Store
from ..progress import SweepProgress
from ..work import Work
from ..writer import write_rows
from .run import Runner


def run_local(
    runner: Runner,
    works: Iterable[Work],
    store: Store,
    progress: SweepProgress,
    *,
    flush_seconds: float | None,
    sweep: Definition,
) -> None:
    """One model in this process; on an error or Ctrl-C what is finished is written first.

    Args:
        sweep: not asked: the runner has the model already.
    """
    del sweep
    write_rows(runner.run(works), store, progress, flush_seconds)
