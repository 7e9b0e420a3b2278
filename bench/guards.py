"""What compiled code checks before each step, steered and not: `python bench/guards.py [--rounds 5]`.

Dynamo says how many guards a graph has and how long all of them take. A model of 30 small blocks, so that compiling
takes seconds; the number of guards does not depend on width. Sides in turn in one process, compiled anew in each
round. Writes bench/results/guards.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from contextlib import nullcontext

import torch
from common import RESULTS, machine
from steering import random_bank
from torch._dynamo.utils import get_compilation_metrics
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import emosteer as es

SIDES = {"unsteered": None, "emosteer": {}, "emosteer, fused=False": {"fused": False}}


def guards(model, bank: es.Bank, options: dict | None) -> tuple[int, int]:
    """`(number, µs)` of the guards of a decode step behind a static cache."""
    torch._dynamo.reset()
    cache = StaticCache(config=model.config, max_cache_len=32)
    ids, position = torch.full((1, 1), 7), torch.full((1, 1), 8)

    def run(**kwargs):
        return model(**kwargs).logits

    compiled = torch.compile(run, backend="eager", dynamic=False)
    steered = nullcontext() if options is None else es.steer(model, bank, "c0", 0.3, layers="all", **options)
    with steered, torch.no_grad():
        for _ in range(3):  # the first step of a cache has a graph of its own
            compiled(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True)
    last = get_compilation_metrics()[-1]
    return last.guard_count, last.guard_latency_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    bank = random_bank(model, 3)
    found: dict[str, list[tuple[int, int]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, options in SIDES.items():
            found[side].append(guards(model, bank, options))
    with (RESULTS / "guards.csv").open("w", newline="") as file:
        file.write(f"# python bench/guards.py --rounds {rounds}\n# {machine()}\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["side", "guards", "median_us", "min_us", "max_us", "rounds"])
        for side, seen in found.items():
            times = [time for _, time in seen]
            rows.writerow([side, seen[0][0], statistics.median(times), min(times), max(times), rounds])
    print((RESULTS / "guards.csv").read_text())


if __name__ == "__main__":
    main()
