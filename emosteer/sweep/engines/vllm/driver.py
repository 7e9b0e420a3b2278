"""`engine="vllm"`: one vLLM in this process's charge."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from emosteer.models.blocks import find_decoder

from ...definition import Definition
from ...store import Store
from ..local import Runner
from ..progress import SweepProgress
from ..work import Work
from ..writer import write_rows
from .runner import Started, VllmRunner


def run_vllm(
    runner: Runner,
    works: Iterable[Work],
    store: Store,
    progress: SweepProgress,
    *,
    flush_seconds: float | None,
    sweep: Definition,
    **options: Any,
) -> None:
    """One model in vLLM; on an error what is finished is written first.

    Args:
        sweep: what says which model vLLM loads.
        options: arguments of `vllm.EngineArgs`: tensor_parallel_size, max_model_len, max_num_seqs,
            gpu_memory_utilization, enforce_eager, kv_cache_memory_bytes (on a CPU 1 GiB unless given) and more.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: an option that vLLM does not know, a model that is not loaded by name.
        RuntimeError: vLLM does not start, cannot steer this model, or has ended, and why.
        FolderError: the folder cannot be written to.
    """
    started = Started.of(sweep, find_decoder(runner.model).depth, options)
    with ExitStack() as until_done:
        there = VllmRunner(runner, started, until_done)
        write_rows(there.run(works), store, progress, flush_seconds)
