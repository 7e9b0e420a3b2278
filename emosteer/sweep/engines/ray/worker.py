"""A worker: an actor that holds a model, runs tasks on it, and writes what it found to the shared store."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from emosteer.bank import Bank

from ...definition import Definition
from ...metrics.row import Row
from ...plan.generation import Generation
from ...plan.identity import model_id
from ...store import FolderError, Store
from ..local import Runner
from ..vllm.runner import Started, VllmRunner
from ..vllm.server import Ended
from .cluster import imported
from .tasks import MetricsSeen


@dataclass(frozen=True)
class Recipe:
    """What a worker makes its runner of; travels once, through Ray's object store.

    Attributes:
        model, tok: themselves, or None where `loading` says how to load them.
        loading: keyword arguments of `es.load`; a worker with a GPU loads onto it.
        model_id: what the loaded model must be.
        bank, generation, relative, batch_tokens, batch_rows: of `Runner`.
        folder: of the store; every node must reach it.
        vllm: what the worker's vLLM is started with; None where transformers runs the model.
    """

    model: Any
    tok: Any
    loading: dict[str, Any] | None
    model_id: str
    bank: Bank
    generation: Generation
    relative: bool
    batch_tokens: int | None
    batch_rows: int | None
    folder: str
    vllm: Started | None = None

    @classmethod
    def of(
        cls, sweep: Definition, runner: Runner, model_id: str, folder: str, vllm: Started | None = None
    ) -> Recipe:
        """A model that came by name is loaded by each worker, another one is copied to it."""
        import torch

        loading = None
        if sweep.name is not None:
            dtype = getattr(torch, str(sweep.dtype or torch.float32).removeprefix("torch."))
            loading = dict(name=sweep.name, dtype=dtype, device=sweep.device, revision=sweep.revision)
        model, tok = (runner.model, runner.tok) if loading is None else (None, None)
        batch = (sweep.batch_tokens, sweep.batch_rows)
        return cls(
            model,
            tok,
            loading,
            model_id,
            runner.bank,
            runner.generation,
            runner.relative,
            *batch,
            folder,
            vllm,
        )

    def runner(self, gpus: float, until_done: ExitStack) -> Runner | VllmRunner:
        """What runs units: the model, on the worker's GPU if it has one; or vLLM, which has begun to serve it.

        Args:
            gpus: that Ray gave the worker.
            until_done: closes vLLM when it is left.

        Raises:
            ValueError: this node's model is another than the driver's.
            ImportError, RuntimeError: vLLM is not there, or does not start, and why.
        """
        if self.vllm is None:
            return self._transformers(gpus)
        there = VllmRunner(self._transformers(0), self.vllm, until_done)  # the GPU is vLLM's
        there.server  # noqa: B018 (starts it)
        return there

    def _transformers(self, gpus: float) -> Runner:
        model, tok = self.model, self.tok
        if self.loading is not None:
            from emosteer.models.loading import load

            loading = {**self.loading, "device": "cuda"} if gpus else self.loading
            model, tok = load(**loading)
            if model_id(model, tok) != self.model_id:
                raise ValueError(
                    f"the model {loading['name']!r} on {os.uname().nodename} is not the one that the sweep was "
                    f"planned with: other weights, configuration or tokenizer; make the nodes' copies the same"
                )
        elif gpus:
            model = model.to("cuda")
        bank = self.bank.to(model.device) if gpus else self.bank
        return Runner(
            model,
            tok,
            bank,
            self.generation,
            relative=self.relative,
            batch_tokens=self.batch_tokens,
            batch_rows=self.batch_rows,
        )


@dataclass(frozen=True)
class Finished:
    """A task that is on disk: its units, failed results, and the seconds it took."""

    units: int
    failed: int
    seconds: float


@dataclass(frozen=True)
class Broken:
    """The worker's vLLM has ended amid a task, and why; what was finished of it is on disk."""

    why: str


class Worker:
    """The actor.

    Args:
        recipe: of its runner.
        run_id: of its parts; tells the driver what a lost worker had written.
        threads: of torch; None: as many as it takes.
        gpus: that Ray gave it.
    """

    def __init__(self, recipe: Recipe, run_id: str, threads: int | None, gpus: float) -> None:
        self._trouble: Exception | None = None
        self._until_done = ExitStack()
        try:
            import torch

            if threads:
                torch.set_num_threads(threads)
            self._runner = recipe.runner(gpus, self._until_done)
            self._metrics = MetricsSeen(imported())
            self._store = Store(recipe.folder)
            self._store.run_id = run_id
            self._store.manifest()
        except FileNotFoundError as error:
            self._trouble = FolderError(
                f"a worker on {os.uname().nodename} does not see the sweep's folder ({error}); give a path or URL "
                f"that all nodes share"
            )
        except Exception as error:  # raised by `ready`, where the driver sees it as it is
            self._trouble = error

    def ready(self) -> int:
        """The process's id, once the model is there; raises what went wrong on the way."""
        if self._trouble is not None:
            raise self._trouble
        return os.getpid()

    def close(self) -> None:
        """End what the worker has started; no task may follow."""
        self._until_done.close()

    def run(self, coded: list[Any], refs: dict[str, Any]) -> Finished | Broken:
        """Run a task and write its results as one part; done once this returns."""
        start = time.monotonic()
        rows: list[Row] = []
        works = self._metrics.unpacked(coded, refs)
        try:
            for found in self._runner.run(works):
                rows += found
        except Ended as error:
            if rows:
                self._store.append(rows)
            return Broken(str(error))
        self._store.append(rows)
        return Finished(len(works), sum(row.error is not None for row in rows), time.monotonic() - start)
