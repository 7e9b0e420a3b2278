"""Whether a block that normalises its output should leave its own add to steering: `python bench/post_norm.py`.

OLMo-2, OLMo-3 and EXAONE-4 end a block with `stream = residual + norm(x)`, which only linear layers read. The add
can be had with the steering (`steer_rms_norm_` takes a residual) where the norm hands on a tensor that knows what
to do when it is added: a subclass, so that every add of it is asked for. Timed in turn in one process, as a step
finds them (other rows each time): the norm and the add, those and steering by a bound site, the add asked for and
done as it is, and the add asked for and done with the steering. Writes bench/results/post_norm.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from datetime import date
from time import perf_counter

import torch
from common import RESULTS, machine
from torch import Tensor

from emosteer import ops
from emosteer.ops import NormSite, SteerSite, SteerTable

WIDTH = 2048
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Asked(Tensor):
    """What a norm hands on; `added` is what happens where it is added to a residual."""

    added = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is Tensor.add and len(args) == 2 and type(args[1]) is Asked:
                return args[1].added(args[1].as_subclass(Tensor), args[0])
            return function(*args, **(kwargs or {}))


def sides(rows: int, dtype: torch.dtype):
    """The ways by name: each returns the stream of a block."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 8, rows, WIDTH).to(dtype)
    weight = torch.ones(WIDTH, dtype=dtype)
    directions = torch.nn.functional.normalize(torch.randn(8, WIDTH), dim=-1)
    table = SteerTable.empty(1)
    table.direction[0, 0], table.strength[0, 0], table.preserve_norm[0] = 3, 0.5, 1
    norm, steer = NormSite(weight), SteerSite(directions, table)
    turn = iter(range(10**9)).__next__

    def normed_and(added):
        at = turn() % 8
        normed = norm(x[at]).as_subclass(Asked)
        normed.added = added
        return residual[at] + normed

    def with_steering(normed: Tensor, other: Tensor) -> Tensor:
        return ops.steer_rms_norm_(normed, weight, directions, table, residual=other)[1]

    def plain():
        at = turn() % 8
        return residual[at] + norm(x[at])

    return {
        "norm and add": plain,
        "norm and add, steered by a bound site": lambda: steer(plain()),
        "norm and an add asked for": lambda: normed_and(lambda normed, other: other + normed),
        "norm and an add asked for, with steering": lambda: normed_and(with_steering),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    found = []
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            for rows in (1, 16, 512):
                calls, times = 4000 // (rows + 15), {}
                for _ in range(rounds):
                    for side, run in sides(rows, dtype).items():
                        run()
                        began = perf_counter()
                        for _ in range(calls):
                            run()
                        times.setdefault(side, []).append((perf_counter() - began) / calls * 1e6)
                for side, each in times.items():
                    low, middle, high = statistics.quantiles(each, n=4)
                    found.append(
                        {
                            "dtype": name,
                            "rows": rows,
                            "side": side,
                            "median_us": f"{middle:.1f}",
                            "q1_us": f"{low:.1f}",
                            "q3_us": f"{high:.1f}",
                        }
                    )
                    print(*found[-1].values())
    with (RESULTS / "post_norm.csv").open("w", newline="") as file:
        file.write(f"# python bench/post_norm.py --rounds {rounds}\n# {date.today()}: {machine()}\n")
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
