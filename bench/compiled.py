"""Compiled: steered ÷ unsteered time of a whole model: `python bench/compiled.py [--dtype float32] [--rounds 21]`.

All 30 blocks of the built-in model, every row its own vector, norm preserved; a decode step behind a static
cache, and a prefill, each compiled for its shape (`torch.compile(dynamic=False)`). Every side has a copy of the
model of its own, compiled once and never patched again; they run in turn in one process, and each round gives
one ratio. Sides: unsteered; emosteer; a plain hook a block; where they can be imported repeng and
steering-vectors (`make bench-compiled` puts them beside the environment). All hooks are compiled along. Also counts
the kernel calls in Inductor's output, compares 256 programs with one, and times `set` between steps. Writes
bench/results/compiled_<dtype>.csv and .png.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from unittest.mock import patch

import torch
from common import PACKAGES, Result, machine, plot_ratios, save, summary
from peers import plain_hook, repeng, steering_vectors
from steering import CONTEXT, SHAPES, STRENGTH, random_bank
from torch._dynamo.utils import counters
from torch._inductor.graph import GraphLowering
from transformers import StaticCache

import emosteer as es

PEERS = {
    "plain hook": ("torch", plain_hook),
    "repeng": ("repeng", repeng),
    "steering-vectors": ("steering_vectors", steering_vectors),
}
# Room for four directions a row, as `es.steer` makes it, and for the one that these programs name.
OURS = {"emosteer": 4, "emosteer, slots=1": 1}
PROGRAMS = "decode B=256"
CALL = re.compile(r"^\s+(?:cpp_fused\w*\(|extern_kernels\.|torch\.ops\.|aten\.)", re.MULTILINE)


class Side:
    """A copy of the model, steered or not, and one compiled call of it."""

    def __init__(self, model, batch: int, length: int) -> None:
        self.model = copy.deepcopy(model)
        self.batch, self.length = batch, length
        self.calls = 0
        vocabulary, device = model.config.vocab_size, model.device
        columns = max(length, 1)
        self.ids = torch.randint(0, vocabulary, (batch, columns), device=device)
        self.position = torch.arange(columns, device=device).expand(batch, -1).contiguous()
        self.cache = None
        if not length:
            self.cache = StaticCache(config=model.config, max_cache_len=2 * CONTEXT)
            prefix = torch.randint(0, vocabulary, (batch, CONTEXT), device=device)
            self.model(input_ids=prefix, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.position = self.position + CONTEXT

    def compile(self) -> None:
        """Compile, and count what the compiled code calls."""
        module = self.model

        def run(**kwargs):
            return module(**kwargs).logits

        # Compiled code belongs to a code object, and its guards look at no hook: each side has one of its own.
        run.__code__ = run.__code__.replace()
        self.compiled = torch.compile(run, dynamic=False)
        code: set[str] = set()
        with patch.object(GraphLowering, "save_output_code", code.add):
            self.step()
        self.calls = sum(
            len(CALL.findall(part[part.index("def call(") :])) for part in code if "def call(" in part
        )

    def step(self) -> torch.Tensor:
        if self.cache is None:
            return self.compiled(
                input_ids=self.ids, position_ids=self.position, use_cache=False, logits_to_keep=1
            )
        for layer in self.cache.layers:  # step back
            layer.cumulative_length.fill_(CONTEXT)
        return self.compiled(
            input_ids=self.ids, position_ids=self.position, past_key_values=self.cache, use_cache=True
        )


def in_turn(sides: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in (
            list(sides.items()) if turn % 2 else reversed(sides.items())
        ):  # so that drift cancels
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            if turn:
                times[name].append((time.perf_counter() - start) / repeats)
    return times


def measure(model, bank: es.Bank, name: str, rounds: int, peers: Sequence[str]) -> list[Result]:
    batch, length = SHAPES[name]
    programs = [es.add(bank.names[b % len(bank)], STRENGTH) for b in range(batch)]
    sides = {side: Side(model, batch, length) for side in ("unsteered", *OURS, *peers)}
    for side, slots in OURS.items():
        es.steer(sides[side].model, bank, programs, layers="all", slots=slots).attach()
    for peer in peers:
        PEERS[peer][1](sides[peer].model, bank, batch, STRENGTH)
    for label, side in sides.items():
        start = time.perf_counter()
        side.compile()
        print(f"{name}: {label} compiled in {time.perf_counter() - start:.0f} s", flush=True)
    times = in_turn({n: s.step for n, s in sides.items()}, rounds, 4 if batch * max(length, 1) <= 16 else 1)
    return [
        Result(name, side, "unsteered", times[side], times["unsteered"], made.calls)
        for side, made in sides.items()
    ]


def programs_in_a_batch(model, bank: es.Bank, rounds: int, batch: int = 256) -> list[Result]:
    """256 programs in one batch against one program for all, and `set` between two steps."""
    many = [es.add(bank.names[b % len(bank)], STRENGTH + b * 1e-4) for b in range(batch)]
    side = Side(model, batch, 0)
    steering = es.steer(side.model, bank, many, layers="all").attach()
    side.compile()
    print("measuring 256 programs", flush=True)
    graphs, one = counters["stats"]["unique_graphs"], many[:1] * batch

    def run(programs) -> Callable[[], object]:
        def step() -> None:
            steering.set_all(programs)
            side.step()

        return step

    times = in_turn({"256 programs": run(many), "1 program": run(one)}, rounds, 1)
    changes = []
    before = side.step()
    for k in range(rounds):
        start = time.perf_counter()
        steering.set(k % batch, es.add("c7", 0.1 + 0.01 * k))
        changes.append(time.perf_counter() - start)
        after = side.step()
        assert not torch.equal(after[k % batch], before[k % batch]), "the next step must see the program"
        before = after
    assert counters["stats"]["unique_graphs"] == graphs, "no program may compile anything"
    return [
        Result(PROGRAMS, "256 programs", "1 program", times["256 programs"], times["1 program"]),
        Result("set between steps", "emosteer", "", changes, []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--case", action="append", choices=[*SHAPES, PROGRAMS], help="only these (repeatable)"
    )
    parser.add_argument(
        "--peers-at", action="append", choices=SHAPES, help="other hooks in these cases only (repeatable)"
    )
    parser.add_argument("--name", help="of the files in bench/results/, where they shall not be written over")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64
    peers = [peer for peer, (module, _) in PEERS.items() if find_spec(module)]
    print(machine((*PACKAGES, *peers)))
    model, _ = es.load("smollm2", dtype=getattr(torch, options.dtype))
    bank = random_bank(model)
    results, file = [], options.name or f"compiled_{options.dtype}"
    for name in options.case or [*SHAPES, PROGRAMS]:
        torch._dynamo.reset()
        if name == PROGRAMS:
            results += programs_in_a_batch(model, bank, max(options.rounds // 2, 3))
        else:
            here = peers if options.peers_at is None or name in options.peers_at else []
            results += measure(model, bank, name, options.rounds, here)
        print(summary(results), flush=True)
        path = save(file, results, (*PACKAGES, *peers))  # after each: compiling takes minutes
    plot_ratios(
        path, f"SmolLM2-135M, {options.dtype}, compiled, static cache: all 30 blocks steered ÷ unsteered"
    )


if __name__ == "__main__":
    main()
