"""What steering costs, beside other libraries: `python bench/headline.py [--dtype float32] [--rounds 15]`.

A decoding step of the built-in model: all of its blocks or the middle one, 1 to 64 rows, one vector for the whole
batch or one a row where a library can do that. Each library in its own way, as it comes: a vector added, with the
norm kept where it offers that (emosteer, repeng, a plain hook). Everything in turn in one process against the
unsteered model. Writes bench/results/headline_<dtype>.csv; `--library transformer-lens`, which wants a newer
transformers, measures that one alone into headline_transformer-lens_<dtype>.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from common import PACKAGES, Result, machine, save, summary
from peers import plain_hook, repeng
from peers_steering import Sides, installed, median_step, workload
from steering import STRENGTH, random_bank

import emosteer as es

# (layers: None for all, rows, vectors)
CASES = {
    "30 layers, 1 row": (None, 1, 1),
    "30 layers, 16 rows": (None, 16, 1),
    "30 layers, 64 rows": (None, 64, 1),
    "30 layers, 64 rows, a vector each": (None, 64, 64),
    "1 layer, 1 row": ((15,), 1, 1),
    "1 layer, 16 rows": ((15,), 16, 1),
    "1 layer, 64 rows": ((15,), 64, 1),
    "1 layer, 64 rows, a vector each": ((15,), 64, 64),
}
LIBRARIES = ("repeng", "steering-vectors", "pyvene", "saklas")
LENS = "transformer-lens"
REPEATS = {1: 7, 16: 3, 64: 1}
Enter = Callable[[], AbstractContextManager]


def entered(model, bank: es.Bank, sides: Sides, name: str) -> dict[str, Enter]:
    """Side → how to enter it; what is entered runs the model."""
    layers, _, vectors = CASES[name]
    programs = [es.add(bank.names[v], STRENGTH) for v in range(vectors)]
    ways: dict[str, Enter] = {"unsteered": lambda: nullcontext(model)}
    if LENS in sides.libraries:
        if vectors == 1:
            ways |= {
                "TransformerLens, unhooked": sides.transformer_lens,
                "TransformerLens": sides.transformer_lens_adding,
            }
        return ways
    here = "all" if layers is None else layers
    ways["emosteer"] = lambda: running(model, es.steer(model, bank, programs, layers=here))
    ways["plain hook"] = lambda: running(model, plain_hook(model, bank, vectors, STRENGTH, layers))
    if vectors > 1:
        if "repeng" in sides.libraries:
            ways["repeng"] = lambda: running(model, repeng(model, bank, vectors, STRENGTH, layers))
        return ways
    known = {
        "repeng": sides.repeng_normalized,
        "steering-vectors": sides.steering_vectors,
        "pyvene": sides.pyvene,
        "saklas": sides.saklas,
    }
    return ways | {library: way for library, way in known.items() if library in sides.libraries}


@contextmanager
def running(model, steered: AbstractContextManager) -> Iterator[Callable]:
    with steered:
        yield model


def measure(model, bank: es.Bank, sides: Sides, name: str, rounds: int) -> list[Result]:
    rows = CASES[name][1]
    step, ways = workload(model, rows, 0), entered(model, bank, sides, name)
    if len(ways) == 1:
        return []
    times: dict[str, list[float]] = {side: [] for side in ways}
    for turn in range(rounds + 1):
        for side, enter in (
            list(ways.items()) if turn % 2 else reversed(ways.items())
        ):  # so that drift cancels
            with enter() as run:
                seconds = median_step(step, run, REPEATS[rows])
                if turn:
                    times[side].append(seconds)
    return [Result(name, side, "unsteered", times[side], times["unsteered"]) for side in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--library", choices=[LENS], help="this one alone, into a file with its name")
    options = parser.parse_args()
    libraries = [options.library] if options.library else [name for name in LIBRARIES if installed(name)]
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    packages = (*PACKAGES, *libraries)
    print(machine(packages))
    model, tokenizer = es.load("smollm2", dtype=getattr(torch, options.dtype))
    bank = random_bank(model)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        of = partial(Sides, model, tokenizer, folder, libraries)
        known = {layers: of(layers=layers) for layers in (None, (15,))}
        for name, (layers, _, _) in CASES.items():
            results += measure(model, bank, known[layers], name, options.rounds)
    print(summary(results))
    which = f"{options.library}_" if options.library else ""
    save(f"headline_{which}{options.dtype}", results, packages)


if __name__ == "__main__":
    main()
