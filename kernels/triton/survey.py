"""Compiles many variants at once, in processes of their own: `python -m emosteer.kernels.survey` is one of them.

Processes of their own because a process that interprets kernels cannot compile them, and because the
compiler uses one core.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from . import variants
from .offline import TOOLS, Resources, compile, variant


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
    found = _in_processes("compile", [picks[i::count] for i in range(count)])
    return {pick: Resources(**found[pick]) for pick in picks}


def digests(picks: Iterable[Pick]) -> dict[Pick, str]:
    """What the machine code of each variant follows from: its kernel's sources, constants and options, the compiler.

    Nothing is compiled. Where a digest is that of an earlier survey, so are the figures.
    """
    picks = list(dict.fromkeys(picks))
    found = _in_processes("digest", [picks])
    return {pick: found[pick] for pick in picks}


def _in_processes(verb: str, shares: list[list[Pick]]) -> dict[Pick, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    workers = []
    for share in shares:
        worker = subprocess.Popen(
            [sys.executable, "-m", "emosteer.kernels.survey", verb, json.dumps(share)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        workers.append(worker)
    found: dict[Pick, Any] = {}
    for worker in workers:
        out, errors = worker.communicate()
        if worker.returncode:
            for other in workers:
                other.kill()
            raise RuntimeError(f"compiling without a GPU failed:\n{errors[-2000:]}")
        found |= {Pick(*pick): answer for pick, answer in json.loads(out)}
    return found


@cache
def _launches(dtype: str, dim: int) -> dict:
    return dict(variants.of(getattr(torch, dtype), dim))


@cache
def _compiler() -> str:
    said = subprocess.run([TOOLS / "ptxas", "--version"], capture_output=True, text=True, check=True).stdout
    return f"{triton.__version__} {said}"


def _digest(pick: Pick) -> str:
    determines = variant(_launches(pick.dtype, pick.dim)[pick.name], pick.target) + _compiler()
    determines = determines.replace(str(Path(triton.__file__).parent), "")  # the same wherever Triton lies
    return hashlib.sha256(determines.encode()).hexdigest()[:16]


def _compile(pick: Pick) -> dict[str, int]:
    return compile(_launches(pick.dtype, pick.dim)[pick.name], pick.target)[0].as_dict()


def _main() -> None:
    answer: Callable[[Pick], Any] = {"compile": _compile, "digest": _digest}[sys.argv[1]]
    found = []
    for pick in (Pick(*pick) for pick in json.loads(sys.argv[2])):
        try:
            found.append((pick, answer(pick)))
        except Exception as error:
            sys.exit(f"{pick}: {type(error).__name__}: {error}")
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
