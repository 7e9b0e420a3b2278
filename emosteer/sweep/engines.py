"""What carries a sweep out. An engine gets what is left to do and writes what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .progress import SweepProgress
from .runner import Runner, Work
from .store import Store
from .writer import write_rows


def run_local(
    runner: Runner,
    works: Iterable[Work],
    store: Store,
    progress: SweepProgress,
    *,
    flush_seconds: float | None,
) -> None:
    """One model in this process; on an error or Ctrl-C what is finished is written first."""
    write_rows(runner.run(works), store, progress, flush_seconds)


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
        from .vllm_engine.server import imported as vllm_imported

        vllm_imported()
        from .vllm_engine import run_vllm

        return run_vllm
    raise ValueError(f'engine must be "local", "ray" or "vllm", got {name!r}')
