"""The ratios that README promises, each held to its bar: `python bench/gate.py [--only decode] [--slowed 1000]`.

Both sides of a ratio run in turn in one process. One fails where its median is beyond the bar by more than the
distance of its quartiles, and by more than 15% of the bar: what noise alone does not do. `--slowed` makes every
call of the compiled row kernels take so many microseconds longer, to see the gate close. Writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import extraction
import ops
import steering
import sweep
import torch
from common import Result, machine

import emosteer as es
from emosteer import _cpu

TOLERANCE = 0.15
KERNELS = ("steer_rows", "steer", "rms_norm_rows", "steer_rms_norm_rows", "steer_rms_norm")
ROUNDS = 9


@dataclass(frozen=True)
class Promise:
    """A ratio of times, ours over the other's, that must stay at or below a bar.

    `measure` gives results of which those named `side` (by `Result.side`) count.
    """

    name: str
    bar: float
    side: str
    measure: Callable[[], Iterable[Result]]

    def verdicts(self) -> list[Verdict]:
        return [
            Verdict(
                self.name if result.case in self.name else f"{self.name}: {result.case}",
                self.bar,
                result.ratios,
            )
            for result in self.measure()
            if result.side == self.side
        ]


@dataclass(frozen=True)
class Verdict:
    """What was measured for a promise."""

    name: str
    bar: float
    ratios: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return high - low

    @property
    def broken(self) -> bool:
        return self.median - self.bar > max(self.spread, TOLERANCE * self.bar)

    def __str__(self) -> str:
        said = "BROKEN" if self.broken else "above, within its spread" if self.median > self.bar else "holds"
        if not self.broken and self.spread > 2 * TOLERANCE * self.bar:
            said += ", but too noisy to say much"
        return f"{self.name:<58} {self.median:6.3f} ± {self.spread:.3f}  bar {self.bar:.2f}  {said}"


# ---- what is measured -------------------------------------------------------------------------------


@cache
def model(dtype: str = "float32") -> tuple[Any, Any, es.Bank]:
    found, tok = es.load("smollm2", dtype=getattr(torch, dtype))
    return found, tok, steering.random_bank(found)


def steered(shape: str, dtype: str) -> list[Result]:
    found, _, bank = model(dtype)
    return steering.measure(found, bank, shape, ROUNDS, [])


def compiled(shape: str) -> list[Result]:
    """Both sides compiled, behind a static cache."""
    import compiled as bench

    found, _, bank = model()
    torch._dynamo.reset()
    return bench.measure(found, bank, shape, ROUNDS, [])


def programs() -> list[Result]:
    found, _, bank = model()
    return steering.programs_in_a_batch(found, bank, ROUNDS)


@cache
def copies() -> list[Result]:
    return ops.against_a_copy(ROUNDS)


def a_copy(out_of_cache: bool) -> list[Result]:
    """`steer_` ÷ copying the same bytes."""
    return [result for result in copies() if ("out of" in result.case) == out_of_cache]


def extracted() -> list[Result]:
    found, tok, _ = model()
    return extraction.against_forwards(found, tok, 32, ROUNDS)[:1]  # the other: all hidden states


def swept() -> list[Result]:
    """Seconds of a unit in mixed batches ÷ in a loop over vectors, as other libraries run it."""
    found, tok, bank = model()
    prompts, metrics = sweep.prompts_of(tok, sweep.PROMPTS), [es.metrics.choices(sweep.CHOICES)]

    def arms(turn: int) -> list:
        names = [bank.names[(8 * turn + k) % len(bank)] for k in range(8 if turn else 1)]
        return sweep.arms_of(bank, names, sweep.STRENGTHS)

    times = sweep.Rounds("choices", ROUNDS // 2, {
        "sweep": lambda turn: sweep.sweep_units(found, tok, bank, arms(turn), prompts, metrics),
        "loop": lambda turn: sweep.loop_choices(found, tok, bank, arms(turn)[::3], prompts, sweep.hook_loop),
    }).times  # fmt: skip
    return [Result("choices", "sweep", "loop", times["sweep"], times["loop"])]


# What README says, a line a promise; a new one is a line more.
PROMISES = [
    *(
        Promise(f"steered ÷ unsteered, {dtype}, {shape}", 1.00, "emosteer", partial(steered, shape, dtype))
        for dtype in ("float32", "bfloat16")
        for shape in steering.SHAPES
    ),
    *(
        Promise(f"compiled: steered ÷ unsteered, {shape}", 1.02, "emosteer", partial(compiled, shape))
        for shape in steering.SHAPES
        if find_spec("compiled")
    ),
    Promise("256 programs ÷ 1 program", 1.02, "256 programs", programs),
    Promise("operation ÷ copy", 1.30, "steer_", partial(a_copy, True)),
    Promise("operation ÷ copy, in cache", 1.80, "steer_", partial(a_copy, False)),
    Promise("operation ÷ eager torch", 1 / 6, "steer_", lambda: ops.against_eager(ROUNDS)),
    Promise("extraction ÷ bare pass", 1.05, "es.extract", extracted),
    Promise("sweep ÷ loop over vectors", 1 / 4, "sweep", swept),
]


# ---- the gate ---------------------------------------------------------------------------------------


def slow(microseconds: float) -> None:
    """Every row kernel of the CPU backend takes so much longer."""

    def slowed(kernel: Callable) -> Callable:
        def run(*arguments: Any) -> Any:
            end = time.perf_counter() + microseconds * 1e-6
            done = kernel(*arguments)
            while time.perf_counter() < end:
                pass
            return done

        return run

    for name in KERNELS:
        setattr(_cpu, name, slowed(getattr(_cpu, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="promises whose name contains this")
    parser.add_argument("--slowed", type=float, default=0.0, metavar="MICROSECONDS")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(machine())
    if options.slowed:
        slow(options.slowed)
    verdicts = []
    for promise in (one for one in PROMISES if options.only in one.name):
        for verdict in promise.verdicts():
            print(verdict, flush=True)
            verdicts.append(verdict)
    broken = [verdict for verdict in verdicts if verdict.broken]
    print(f"{len(verdicts) - len(broken)} of {len(verdicts)} hold")
    sys.exit(1 if broken or not verdicts else 0)


if __name__ == "__main__":
    main()
