"""The driver: streams tasks to workers with bounded work in flight, and does again what lost workers had not done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from emosteer.models.blocks import find_decoder

from ...definition import Definition
from ...store import FolderError, Store
from ...store.places import LocalPlace
from ...store.rows import FAILED, read_part
from ..local import Runner
from ..progress import SweepProgress
from ..vllm.runner import Started
from ..work import Work, failed_rows
from .cluster import Placement, connected
from .tasks import TRIES, MetricShelf, Task, Tasks
from .worker import Broken, Finished, Recipe, Worker

# Workers that may die in a row without a task being finished in between.
DEATHS = 16
# Seconds without a word from any worker after which the driver looks whether there is room for one.
SILENCE = 10.0
# Seconds in which a worker must have ended its vLLM.
CLOSING = 20.0


@dataclass
class _Held:
    """A worker and the tasks it was given, the one it runs first."""

    actor: Any
    run_id: str
    ready: bool = False
    tasks: list[tuple[Any, Task]] = field(default_factory=list)


def run_ray(
    runner: Runner,
    works: Iterable[Work],
    store: Store,
    progress: SweepProgress,
    *,
    flush_seconds: float | None = None,
    sweep: Definition,
    address: str | None = None,
    num_workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    resources: Mapping[str, float] | None = None,
    units_per_task: int | None = None,
    in_flight: int = 2,
    vllm: Mapping[str, Any] | None = None,
) -> None:
    """Workers of a Ray cluster, one model each, in transformers or in a vLLM of its own.

    Args:
        flush_seconds: of a task, each of which is a part.
        sweep: what says how a worker gets its model and how large its batches are.
        address: of the cluster; None: what is connected, RAY_ADDRESS, or this machine alone.
        num_workers: None for as many as the cluster has room for.
        cpus_per_worker: also the threads of torch.
        gpus_per_worker: 0 for none; a fraction shares a GPU.
        resources: further ones of each worker, by name.
        units_per_task: None: by the measured speed.
        in_flight: tasks that a worker has at a time, one running and the others waiting.
        vllm: arguments of `vllm.EngineArgs`: each worker starts vLLM with them; None: it runs transformers.

    Raises:
        ImportError: Ray is not installed, or vLLM not where a worker is.
        ValueError: an argument out of range, no room for a worker, or what vLLM does not take.
        ConnectionError: no cluster answers at the address.
        FolderError: the folder cannot be written to, or a node does not see it.
        RuntimeError: workers die one after another and finish nothing.
    """
    placement = Placement(num_workers, cpus_per_worker, gpus_per_worker, resources or {})
    for name, value in (("units_per_task", units_per_task), ("in_flight", in_flight)):
        if isinstance(value, bool) or not (value is None or (isinstance(value, int) and value >= 1)):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if not (vllm is None or isinstance(vllm, Mapping)):
        raise ValueError(
            f"vllm must map names of arguments of vllm.EngineArgs to values ({{}} for none), got {vllm!r}"
        )
    stream = iter(works)
    first = next(stream, None)
    if first is None:
        return
    shared = os.path.abspath(store.place.path) if isinstance(store.place, LocalPlace) else str(store)
    started = None if vllm is None else Started.of(sweep, find_decoder(runner.model).depth, vllm)
    recipe = Recipe.of(sweep, runner, first.unit.model_id, shared, started)
    with connected(address) as ray:
        count = placement.count(ray)
        total = progress.total - progress.before
        tasks = Tasks(chain([first], stream), total, count, units_per_task, flush_seconds)
        driver = _Driver(ray, recipe, placement, tasks, store, progress, in_flight)
        try:
            driver.run(count)
        finally:
            if started is not None:
                closing = [held.actor.close.remote() for held in driver.workers]
                ray.wait(closing, num_returns=len(closing), timeout=CLOSING)
            for held in driver.workers:
                ray.kill(held.actor)


class _Driver:
    def __init__(
        self,
        ray: Any,
        recipe: Recipe,
        placement: Placement,
        tasks: Tasks,
        store: Store,
        progress: SweepProgress,
        in_flight: int,
    ) -> None:
        self.ray, self.placement, self.tasks = ray, placement, tasks
        self.store, self.progress, self.in_flight = store, progress, in_flight
        self.generation = recipe.generation
        self.recipe = ray.put(recipe)
        self.shelf = MetricShelf(ray)
        self.actor = ray.remote(Worker).options(**placement.options())
        self.workers: list[_Held] = []
        self.waiting: dict[Any, _Held] = {}  # what will come, and whose it is
        self.started = self.deaths = 0
        self.no_room = False  # and it was said

    def run(self, count: int) -> None:
        for _ in range(count):
            self._start()
        while True:
            for held in self.workers:
                while held.ready and len(held.tasks) < self.in_flight and self._give(held):
                    pass
            if not any(held.tasks for held in self.workers) and not self.tasks.back:
                task = self.tasks.next()
                if task is None:
                    return
                self.tasks.back.appendleft(task)
            come, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=SILENCE)
            if come:
                self.no_room = False
                come, _ = self.ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=0)
            for ref in come:
                if ref in self.waiting:  # not taken back meanwhile, with its worker
                    self._come(ref, self.waiting[ref])
            if not come and not self.no_room and not any(held.ready for held in self.workers):
                self.no_room = self.placement.warn_of_no_room(self.ray)

    def _start(self) -> None:
        run_id = f"{self.store.run_id}.{self.started:04d}"
        self.started += 1
        threads = max(int(self.placement.cpus), 1)
        held = _Held(self.actor.remote(self.recipe, run_id, threads, self.placement.gpus), run_id)
        self.workers.append(held)
        self.waiting[held.actor.ready.remote()] = held

    def _give(self, held: _Held) -> bool:
        task = self.tasks.next()
        if task is None:
            return False
        ref = held.actor.run.remote(*self.shelf.packed(task.works))
        held.tasks.append((ref, task))
        self.waiting[ref] = held
        return True

    def _come(self, ref: Any, held: _Held) -> None:
        errors = self.ray.exceptions
        try:
            found = self.ray.get(ref)
        except (
            errors.RayActorError,
            errors.OutOfMemoryError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
        ) as e:
            self._lost(held, e)
            return
        except errors.RayTaskError as error:
            raise (error.cause or error) from None
        if isinstance(found, Broken):
            self._lost(held, RuntimeError(found.why))
            return
        del self.waiting[ref]
        if isinstance(found, Finished):
            held.tasks = [pair for pair in held.tasks if pair[0] != ref]
            self.tasks.took(found.units, found.seconds)
            self.progress.saved(found.units, found.failed)
            self.deaths = 0
        else:
            held.ready = True

    def _lost(self, held: _Held, why: Exception) -> None:
        """What the worker had written counts, the rest runs again, elsewhere."""
        self.ray.kill(held.actor)  # one that is only out of reach must not go on
        self.workers.remove(held)
        self.waiting = {ref: other for ref, other in self.waiting.items() if other is not held}
        self.deaths += 1
        if self.deaths > DEATHS:
            raise RuntimeError(
                f"{DEATHS} Ray workers died one after another without finishing a task; every row reported done is "
                f"safe. The last one: {' '.join(str(why).split())[:500]}"
            )
        written = written_by(self.store, held.run_id)
        at_fault = True  # tasks run in turn: the first that is not done was running
        for _, task in held.tasks:
            rest = [work for work in task.works if work.unit.id not in written]
            there = [written[work.unit.id] for work in task.works if work.unit.id in written]
            if there:
                self.progress.saved(len(there), sum(there))
            if rest and at_fault:
                self._again(Task(rest, task.lost + 1), why)
                at_fault = False
            elif rest:  # it waited behind the other: no worker died over it
                self.tasks.back.append(Task(rest, task.lost))
        self._start()

    def _again(self, task: Task, why: Exception) -> None:
        if task.lost < TRIES:
            self.tasks.back.append(task)
        elif len(task.works) > 1:
            self.tasks.back.extend(task.halves())
        else:
            rows = failed_rows(
                task.works[0], RuntimeError(f"{task.lost} workers died over it: {why}"), self.generation
            )
            self.store.append(rows)
            self.progress.saved(1, len(rows))


def written_by(store: Store, run_id: str) -> dict[str, int]:
    """Units that a worker has written, with the number of their failed results.

    Raises:
        FolderError: a part of it cannot be read.
    """
    found: dict[str, int] = {}
    for name in store.parts():
        if not name.startswith(f"part-{run_id}-"):
            continue
        try:
            table = read_part(store.place.read(name))
        except ValueError as error:
            raise FolderError(
                f"{store}/{name} is {error}; run the sweep again, it goes on from there"
            ) from None
        for unit, status in zip(table["unit"].to_pylist(), table["status"].to_pylist()):
            found[unit] = found.get(unit, 0) + (status == FAILED)
    return found
