"""Compiles many variants at once, in processes of their own: `python -m emosteer.kernels.survey` is one of them.

Processes of their own because a process that interprets kernels cannot compile them, and because the
compiler uses one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch

from . import variants
from .offline import Resources, compile


class Pick(NamedTuple):
    """One variant for one target: a name as `variants.of` gives it, "bfloat16", D, "sm_90"."""

    name: str
    dtype: str
    dim: int
    target: str


def every(*targets: str) -> list[Pick]:
    """Every variant that a call can reach, for each of the targets."""
    found = [(name, str(dtype).removeprefix("torch."), dim) for name, dtype, dim in variants.every()]
    return [Pick(*one, target) for target in targets for one in found]


def survey(picks: Iterable[Pick], processes: int | None = None) -> dict[Pick, Resources]:
    """What each of the variants takes of a multiprocessor.

    Raises:
        RuntimeError: a variant does not compile; the message ends with the compiler's.
    """
    picks = list(dict.fromkeys(picks))
    count = max(min(processes or os.cpu_count() or 1, len(picks)), 1)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    workers = []
    for i in range(count):
        worker = subprocess.Popen(
            [sys.executable, "-m", "emosteer.kernels.survey", json.dumps(picks[i::count])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        workers.append(worker)
    found: dict[Pick, Resources] = {}
    for worker in workers:
        out, errors = worker.communicate()
        if worker.returncode:
            for other in workers:
                other.kill()
            raise RuntimeError(f"compiling without a GPU failed:\n{errors[-2000:]}")
        found |= {Pick(*pick): Resources(**resources) for pick, resources in json.loads(out)}
    return {pick: found[pick] for pick in picks}


@cache
def _launches(dtype: str, dim: int) -> dict:
    return dict(variants.of(getattr(torch, dtype), dim))


def _main() -> None:
    found = []
    for pick in (Pick(*pick) for pick in json.loads(sys.argv[1])):
        try:
            resources, _ = compile(_launches(pick.dtype, pick.dim)[pick.name], pick.target)
        except Exception as error:
            sys.exit(f"{pick}: {type(error).__name__}: {error}")
        found.append((pick, resources.as_dict()))
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
