"""Where a sweep on a Ray cluster saturates: `python bench/sweep_scaling.py`, into bench/results/sweep_scaling.csv.

First the costs, measured here: seconds of a unit on SmolLM2-135M (two kinds, one thread), what the driver
spends on a unit (walking the plan, packing) and on a task (handing it out, taking the result, looking at all
that is under way), what the store spends on a row and on a part. Then a simulation of 1 to 1,000 workers with
these costs and the engine's own rule for the size of tasks: the driver is one server, the store's folder
another (its fsyncs one after another), workers run side by side. No network is simulated.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import pickle
import random
import statistics
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from datetime import date
from itertools import count, repeat
from pathlib import Path

import torch
from common import RESULTS, machine
from steering import random_bank
from sweep import CHOICES, LAYER, PROMPTS, STRENGTHS

import emosteer as es
from emosteer.sweep import Generation, Plan, Row, Runner, Store
from emosteer.sweep.engines.ray.tasks import Tasks
from emosteer.sweep.engines.work import remaining
from emosteer.sweep.plan import arms_of, prompts_of
from emosteer.sweep.store import Done

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SECONDS = 1800  # of work for each worker
MOST_UNITS = 20_000_000

# How much faster than here a worker is: this machine's thread, and what a GPU might be (assumed).
FASTER = (1, 100)


@dataclass(frozen=True)
class Costs:
    """Seconds of one thing each, in order: the driver's, the store's."""

    plan_unit: float
    pack_unit: float
    hand_task: float
    look_at: float  # at one of the tasks that are under way
    row: float
    part: float


# ---- what is measured ------------------------------------------------------------------------------


def timed(function, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def unit_seconds(model, tok, bank) -> dict[str, list[float]]:
    """Seconds a unit of several tasks of each kind, one thread."""
    prompts, found = prompts_of(tok, PROMPTS), {}
    for kind, metrics, new, some in (
        ("choices", [es.metrics.choices(CHOICES)], 1, 3),
        ("text, 16 tokens", [es.metrics.text()], 16, 1),
    ):
        runner = Runner(model, tok, bank, Generation(max_new_tokens=new), batch_tokens=2048, batch_rows=64)
        times = []
        for turn in range(4):
            arms = arms_of(bank, bank.names[turn * some : turn * some + some], STRENGTHS)
            plan = Plan("bench", bank, prompts, arms, layers=[(LAYER,)])
            works = list(remaining(plan, metrics, runner.generation, Done(lambda name: None), None))
            start = time.perf_counter()
            for _ in runner.run(works):
                pass
            times.append((time.perf_counter() - start) / len(works))
        found[kind] = times[1:]  # the first proves what can be shared
    return found


def driver_and_store(tok, bank) -> Costs:
    import ray

    prompts, metrics = prompts_of(tok, PROMPTS), [es.metrics.choices(CHOICES)]
    plan = Plan("bench", bank, prompts, arms_of(bank, None, STRENGTHS), layers=[(LAYER,)])

    def walk():
        return list(remaining(plan, metrics, Generation(), Done(lambda name: None), None))

    works = walk()
    task = works[:256]
    packed = [(work.unit, ("choices",), None) for work in task]
    rows = [Row(w.unit, "choices", "00" * 8, 0.5, {" A": -1.0, " B": -1.0}) for w in works[:2048]]

    @ray.remote(num_cpus=0)
    class Idle:
        def run(self, packed, refs):
            return len(packed)

        def wait(self, seconds):
            time.sleep(seconds)

    idle, busy = Idle.remote(), Idle.remote()
    ray.get(idle.run.remote([], {}))
    held = [busy.wait.remote(60) for _ in range(2000)]

    def hand():
        for ref in [idle.run.remote([], {}) for _ in range(100)]:
            ray.get(ref)

    with tempfile.TemporaryDirectory(dir=RESULTS.parent) as folder:
        store = Store(folder)
        few, many = timed(lambda: store.append(rows[:8])), timed(lambda: store.append(rows))
    row = (many - few) / (len(rows) - 8)
    costs = Costs(
        plan_unit=timed(walk) / len(works),
        pack_unit=timed(lambda: pickle.dumps(packed)) / len(task),
        hand_task=timed(hand) / 100,
        look_at=timed(lambda: ray.wait(held, num_returns=len(held), timeout=0)) / len(held),
        row=row,
        part=max(few - 8 * row, 1e-4),
    )
    ray.kill(busy)
    return costs


# ---- the simulation --------------------------------------------------------------------------------


def simulate(workers: int, unit: list[float], costs: Costs, *, seed: int = 0, in_flight: int = 2) -> dict:
    """Events in the order of time: a task is handed out, runs, waits for the store, is taken back.

    The driver takes all that has come at once, as the engine does: one look at everything under way, then
    each result and the next task. A task's speed is one of those measured, times what one unit differs
    from another (log-normal, σ = 0.3 / √units).
    """
    chance, now = random.Random(seed), 0.0
    total = min(max(int(workers * SECONDS / statistics.mean(unit)), workers), MOST_UNITS)
    tasks = Tasks(repeat(None, total), total, workers, clock=lambda: now)
    driver_free = driver_busy = store_free = store_busy = work_done = 0.0
    units_done = parts = under_way = 0
    waiting: list[deque] = [deque() for _ in range(workers)]
    busy, come = [False] * workers, []
    # (when, number, what happens, worker, units, seconds of work)
    events: list[tuple[float, int, str, int, int, float]] = []

    def later(when: float, what: str, worker: int, n: int, takes: float) -> None:
        heapq.heappush(events, (when, next(number), what, worker, n, takes))

    def hand(worker: int) -> None:
        nonlocal driver_free, driver_busy, under_way
        task = tasks.next()
        if task is None:
            return
        n = len(task.works)
        cost = costs.hand_task + n * (costs.plan_unit + costs.pack_unit)
        driver_free, driver_busy, under_way = driver_free + cost, driver_busy + cost, under_way + 1
        takes = n * chance.choice(unit) * chance.lognormvariate(0, 0.3 / n**0.5)
        later(driver_free, "given", worker, n, takes)

    def begin(worker: int) -> None:
        nonlocal work_done
        if waiting[worker] and not busy[worker]:
            n, takes = waiting[worker].popleft()
            busy[worker] = True
            work_done += takes
            later(now + takes + n * costs.row, "to the store", worker, n, takes)

    number = count()
    for _ in range(in_flight):
        for worker in range(workers):
            hand(worker)
    while events:
        now, _, what, worker, n, takes = heapq.heappop(events)
        if what == "given":
            waiting[worker].append((n, takes))
            begin(worker)
        elif what == "to the store":  # one part after another
            store_free = max(store_free, now) + costs.part
            store_busy += costs.part
            later(store_free, "on disk", worker, n, takes)
        elif what == "on disk":
            busy[worker] = False
            begin(worker)
            if not come:
                later(max(now, driver_free), "driver", worker, 0, 0.0)
            come.append((worker, n, takes + n * costs.row + costs.part))
        else:
            driver_free = max(driver_free, now)
            cost = costs.look_at * 2 * (under_way + workers)
            driver_free, driver_busy = driver_free + cost, driver_busy + cost
            done, come = come, []
            for finished, units, seconds in done:
                units_done, parts, under_way = units_done + units, parts + 1, under_way - 1
                tasks.took(units, seconds)
                hand(finished)
    length = max(now, driver_free)
    assert units_done == total
    return {
        "units_per_second": total / length,
        "efficiency": work_done / (length * workers),
        "driver_busy": min(driver_busy / length, 1.0),
        "store_busy": min(store_busy / length, 1.0),
        "parts_per_second": parts / length,
        "units_per_part": total / parts,
    }


def draw(path: Path) -> Path:
    from matplotlib.figure import Figure

    with path.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    for kind in dict.fromkeys((row["unit"], row["faster"]) for row in rows):
        here = [row for row in rows if (row["unit"], row["faster"]) == kind]
        label = kind[0] + (f", {kind[1]} × as fast (assumed)" if kind[1] != "1" else "")
        for axis, key in zip(axes, ("efficiency", "driver_busy", "store_busy")):
            axis.plot(
                *zip(*((int(r["workers"]), float(r[key])) for r in here)),
                marker="o",
                markersize=3,
                label=label,
            )
    for axis, title in zip(axes, ("workers busy with units", "driver busy", "store busy (one folder)")):
        axis.set(xscale="log", ylim=(0, 1.05), xlabel="workers", title=title)
    axes[0].legend(fontsize=7)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    return path.with_suffix(".png")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from emosteer.sweep.engines.ray.cluster import connected

    torch.set_num_threads(1)
    model, tok = es.load("smollm2")
    bank = random_bank(model)
    units = unit_seconds(model, tok, bank)
    with connected(None):
        costs = driver_and_store(tok, bank)
    print(machine())
    print({kind: [f"{t * 1e3:.1f} ms" for t in times] for kind, times in units.items()})
    print({name: f"{value * 1e6:.1f} us" for name, value in costs.__dict__.items()})
    rows = []
    for kind, times in units.items():
        for faster in FASTER:
            for workers in WORKERS:
                found = simulate(workers, [t / faster for t in times], costs)
                values = {key: f"{value:.4g}" for key, value in found.items()}
                rows.append({"unit": kind, "faster": faster, "workers": workers, **values})
                print(rows[-1], flush=True)
    path = RESULTS / "sweep_scaling.csv"
    with path.open("w", newline="") as file:
        file.write(f"# python bench/sweep_scaling.py\n# {date.today()}: {machine()}\n")
        measured = {f"{kind} ms": round(statistics.mean(times) * 1e3, 2) for kind, times in units.items()}
        measured |= {f"{name} us": round(value * 1e6, 2) for name, value in costs.__dict__.items()}
        file.write(f"# measured: {measured}; the rest is simulated\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(draw(path))


if __name__ == "__main__":
    main()
