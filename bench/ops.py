"""The operations on the CPU against what they replace: `python bench/ops.py [--rounds 30]`.

    steer_ of one decoded row         microseconds of a call
    steer_ of a large tensor          ÷ a copy of the same bytes, in cache and out of it
    steer_ and the norm after it      ÷ the same formula in eager PyTorch
    the second moment                 ÷ one full matrix product of the same data
    project on 171 directions         ÷ torch.matmul alone

Both sides run in turn, in changing order; a round gives one ratio. Writes bench/results/ops.csv (`--name` another).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import Result, machine, save, summary

from emosteer import ops
from emosteer.ops import Moments, SteerTable, cpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Buffers taken in turn hold this many bytes: more than any cache.
OUT_OF_CACHE = 512 << 20


def race(case: str, side: str, run: Callable, against: str, other: Callable | None, rounds: int) -> Result:
    """Time two callables in turn, each long enough for the clock."""
    repeats = max(1, min(2000, int(2e-3 / max(_once(run), 1e-7))))

    def timed(what: Callable) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            what()
        return (time.perf_counter() - start) / repeats

    times: list[float] = []
    others: list[float] = []
    for turn in range(rounds):
        pair = [(run, times)] + ([(other, others)] if other else [])
        for what, into in pair if turn % 2 else reversed(pair):
            what()
            into.append(timed(what))
    return Result(case, side, against, times, others)


def _once(run: Callable) -> float:
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def unit(k: int, dim: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(k, dim, dtype=torch.float64), dim=1).float()


def adding(rows: int, k: int) -> SteerTable:
    """Each row its own direction, norms kept."""
    table = SteerTable.empty(rows)
    table.direction[:, 0] = torch.arange(rows) % k
    table.strength.fill_(0.05)
    table.preserve_norm.fill_(1)
    return table


def one_row(rounds: int) -> list[Result]:
    x, directions, table = torch.randn(1, 576), unit(171, 576), adding(1, 171)
    return [
        race("1x576 fp32", "ops.steer_", lambda: ops.steer_(x, directions, table), "", None, rounds),
        race(
            "1x576 fp32",
            "cpu backend",
            lambda: cpu.steer_(x, directions, table, None, 1.0),
            "eager torch",
            lambda: eager_steer(x, directions[:1]),
            rounds,
        ),
    ]


def eager_steer(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same formula and precision: add, rescale to the norm before, in float32, rounded once."""
    wide = x.float()
    y = wide + 0.05 * v
    return (y * (wide.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))).to(x.dtype)


def eager_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def against_a_copy(rounds: int) -> list[Result]:
    found = []
    for name, dtype in DTYPES.items():
        for n, dim in ((2048, 576), (512, 4096)):
            x = torch.randn(n, dim).to(dtype)
            size = x.numel() * x.element_size()
            directions, table, to = unit(171, dim), adding(min(n, 256), 171), torch.empty_like(x)
            found.append(
                race(
                    f"{n}x{dim} {name}, in cache",
                    "steer_",
                    lambda: ops.steer_(x, directions, table),  # noqa: B023
                    "copy_",
                    lambda: to.copy_(x),  # noqa: B023
                    rounds,
                )
            )
            pool = [torch.randn(n, dim).to(dtype) for _ in range(OUT_OF_CACHE // size)]
            found.append(
                race(
                    f"{n}x{dim} {name}, out of cache",
                    "steer_",
                    taking_turns(pool, lambda y, _: ops.steer_(y, directions, table)),  # noqa: B023
                    "copy_",
                    taking_turns(pool, lambda y, z: z.copy_(y)),
                    rounds,
                )
            )
    return found


def taking_turns(pool: list[torch.Tensor], run: Callable) -> Callable:
    """`run(this, the one half the pool away)` on a buffer that has not been touched for long."""
    at = 0

    def next_one() -> None:
        nonlocal at
        at = (at + 1) % len(pool)
        run(pool[at], pool[(at + len(pool) // 2) % len(pool)])

    return next_one


def against_eager(rounds: int) -> list[Result]:
    found = []
    for name, dtype in DTYPES.items():
        for n in (16, 2048):
            x, directions, table = torch.randn(n, 576).to(dtype), unit(171, 576), adding(n, 171)
            vectors = directions[torch.arange(n) % 171].contiguous()
            weight = torch.randn(576).to(dtype)
            found.append(
                race(
                    f"{n}x576 {name}",
                    "steer_",
                    lambda: ops.steer_(x, directions, table),  # noqa: B023
                    "eager torch",
                    lambda: eager_steer(x, vectors),  # noqa: B023
                    rounds,
                )
            )
            found.append(
                race(
                    f"{n}x576 {name}",
                    "steer_rms_norm_",
                    lambda: ops.steer_rms_norm_(x, weight, directions, table),  # noqa: B023
                    "eager torch",
                    lambda: eager_norm(eager_steer(x, vectors), weight),  # noqa: B023
                    rounds,
                )
            )
    return found


def second_moment(rounds: int) -> list[Result]:
    found = []
    for dim in (576, 2048):
        x = torch.randn(4096, dim)
        moments, square = Moments(1, dim).update(x), torch.empty(dim, dim)
        centred, scatter = moments.centred, moments.scatter
        sides = {
            "lower triangle": lambda: cpu.add_lower_triangle_(scatter, centred),  # noqa: B023
            "moments_update_": lambda: moments.update(x),  # noqa: B023
        }
        for side, run in sides.items():
            found.append(
                race(
                    f"4096x{dim} fp32",
                    side,
                    run,
                    "full product",
                    lambda: torch.mm(x.T, x, out=square),  # noqa: B023
                    max(rounds // 3, 5),
                )
            )
    return found


def projections(rounds: int) -> list[Result]:
    found = []
    directions = unit(171, 576)
    for name, dtype in DTYPES.items():
        for n in (1, 16, 2048):
            x = torch.randn(n, 576).to(dtype)
            widening = dtype != torch.float32  # which matmul needs for dots in float32
            found.append(
                race(
                    f"{n}x576 {name}, K=171",
                    "project",
                    lambda: ops.project(x, directions),  # noqa: B023
                    "x.float() @ v.T" if widening else "x @ v.T",
                    (lambda: x.float() @ directions.T) if widening else (lambda: x @ directions.T),  # noqa: B023
                    rounds,
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--name", default="ops", help="of the file in bench/results/")
    options = parser.parse_args()
    rounds = options.rounds
    print(machine())
    torch.manual_seed(0)
    results: list[Result] = []
    with torch.no_grad():
        for part in (one_row, against_eager, against_a_copy, second_moment, projections):
            results += part(rounds)
    print(summary(results))
    print("written:", save(options.name, results, ("emosteer", "torch")))


if __name__ == "__main__":
    main()
