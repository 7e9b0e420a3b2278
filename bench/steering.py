"""Steered ÷ unsteered time of a model: `python bench/steering.py [--dtype float32] [--rounds 15] [--model NAME]`.

Every row its own vector, norm preserved, all blocks. Both sides, and a plain PyTorch hook that does
the same, run in turn in one process; each round gives one ratio. Writes bench/results/steering_<dtype>.csv, for another
model than the built-in one steering_<model>_<dtype>.csv.
With `--peers`, repeng and steering-vectors run in the same rounds: steering_peers_<dtype>.csv and .png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from common import PACKAGES, Result, machine, plot_ratios, save, summary
from peers import PEERS

import emosteer as es
from emosteer.models.blocks import find_decoder

SHAPES = {"decode B=1": (1, 0), "decode B=16": (16, 0), "decode B=64": (64, 0), "prefill 4x128": (4, 128)}
CONTEXT, STRENGTH = 32, 0.05


def random_bank(model, concepts: int = 171) -> es.Bank:
    """Directions at random: time does not depend on what they mean."""
    decoder = find_decoder(model)
    generator = torch.Generator().manual_seed(0)
    directions = {
        layer: torch.randn(concepts, decoder.dim, generator=generator) for layer in range(decoder.depth)
    }
    return es.Bank([f"c{k}" for k in range(concepts)], directions, scale=dict.fromkeys(directions, 20.0))


def workload(model, batch: int, length: int) -> Callable[[], None]:
    """One decode step behind `CONTEXT` cached tokens, or one prefill.

    With position_ids as generate passes them: repeng cannot do batches without.
    """
    vocabulary = model.config.vocab_size
    position = torch.arange(max(length, CONTEXT + 1)).expand(batch, -1)
    if length:
        ids = torch.randint(0, vocabulary, (batch, length))
        return lambda: model(input_ids=ids, position_ids=position, use_cache=False, logits_to_keep=1)
    prefix, token = (torch.randint(0, vocabulary, (batch, CONTEXT)), torch.randint(0, vocabulary, (batch, 1)))
    cache = model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values

    def step() -> None:
        model(input_ids=token, position_ids=position[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def measure(model, bank: es.Bank, name: str, rounds: int, peers: Sequence[str]) -> list[Result]:
    batch, length = SHAPES[name]
    step = workload(model, batch, length)
    programs = [es.add(bank.names[b % len(bank)], STRENGTH) for b in range(batch)]
    sides = {"unsteered": nullcontext, "emosteer": lambda: es.steer(model, bank, programs, layers="all")}
    for peer in peers:
        sides[peer] = partial(PEERS[peer], model, bank, batch, STRENGTH)
    repeats = 4 if batch * max(length, 1) <= 16 else 1
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, enter in (
            list(sides.items()) if turn % 2 else reversed(sides.items())
        ):  # so that drift cancels
            with enter():
                step()
                start = time.perf_counter()
                for _ in range(repeats):
                    step()
                if turn:
                    times[side].append((time.perf_counter() - start) / repeats)
    return [Result(name, side, "unsteered", times[side], times["unsteered"]) for side in sides]


def programs_in_a_batch(model, bank: es.Bank, rounds: int, batch: int = 256) -> list[Result]:
    """256 programs in one batch against one program for all."""
    step = workload(model, batch, 0)
    many = [es.add(bank.names[b % len(bank)], STRENGTH + b * 1e-4) for b in range(batch)]
    times: dict[str, list[float]] = {"256 programs": [], "1 program": []}
    for turn in range(rounds + 1):
        pair = [("256 programs", many), ("1 program", many[:1])]
        for side, programs in pair if turn % 2 else reversed(pair):
            with es.steer(model, bank, programs, layers="all"):
                step()
                start = time.perf_counter()
                step()
                if turn:
                    times[side].append(time.perf_counter() - start)
    return [Result("decode B=256", "256 programs", "1 program", times["256 programs"], times["1 program"])]


def changing_programs(model, bank: es.Bank, rounds: int) -> list[Result]:
    """Microseconds of changing the program of one row, and of 256."""
    programs = [es.add(bank.names[b % len(bank)], STRENGTH + b * 1e-4) for b in range(256)]
    steering = es.steer(model, bank, programs)
    one, all_rows = [], []
    for _ in range(rounds * 20):
        start = time.perf_counter()
        steering.set(3, es.add("c7", 0.1))
        one.append(time.perf_counter() - start)
        programs.reverse()
        start = time.perf_counter()
        steering.set_all(programs)
        all_rows.append(time.perf_counter() - start)
    return [
        Result("set 1 row", "emosteer", "", one, []),
        Result("set 256 rows", "emosteer", "", all_rows, []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--case", action="append", choices=list(SHAPES), help="only these; may be repeated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", action="store_true", help="other libraries too; they must be installed")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(machine())
    model, _ = es.load(options.model, dtype=getattr(torch, options.dtype))
    bank = random_bank(model)
    results = []
    for name in options.case or SHAPES:
        results += measure(
            model, bank, name, options.rounds, list(PEERS) if options.peers else ["plain hook"]
        )
    if options.peers:
        print(summary(results))
        path = save(f"steering_peers_{options.dtype}", results, (*PACKAGES, "repeng", "steering-vectors"))
        plot_ratios(path, f"SmolLM2-135M, {options.dtype}: all 30 blocks steered ÷ unsteered")
        return
    if options.model != "smollm2":  # the rest depends on no model
        print(summary(results))
        save(f"steering_{options.model}_{options.dtype}", results)
        return
    results += programs_in_a_batch(model, bank, max(options.rounds // 2, 3))
    results += changing_programs(model, bank, options.rounds)
    print(summary(results))
    save(f"steering_{options.dtype}", results)


if __name__ == "__main__":
    main()
