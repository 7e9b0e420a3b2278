"""What watching costs: `python bench/monitoring.py [--rounds 15]`.

Decode steps of 16 rows behind 32 cached tokens, read as z-scores of 171 concepts at one layer ÷ the
same steps unwatched, run in turn in one process; with thresholds too. Writes bench/results/monitoring.csv.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import torch
from common import Result, machine, save, summary
from steering import random_bank, workload

import emosteer as es

BATCH, STEPS = 16, 8


def watched_bank(model) -> es.Bank:
    """Random directions with statistics: time does not depend on what they mean."""
    plain = random_bank(model)
    k, generator = len(plain), torch.Generator().manual_seed(1)
    return es.Bank(
        plain.names,
        plain.directions,
        mean={layer: torch.randn(plain.dim, generator=generator) for layer in plain.layers},
        scale=plain.scale,
        projection_mean={layer: torch.randn(k, generator=generator) for layer in plain.layers},
        projection_std={layer: torch.rand(k, generator=generator) + 0.5 for layer in plain.layers},
    )


def measure(model, rounds: int) -> list[Result]:
    bank = watched_bank(model)
    step = workload(model, BATCH, 0)
    layer = [2 * model.config.num_hidden_layers // 3]
    sides = {
        "unwatched": nullcontext,
        "es.monitor": lambda: es.monitor(model, bank, layers=layer),
        "es.monitor, 10 thresholds": lambda: es.monitor(
            model, bank, dict.fromkeys(bank.names[:10], 1e9), layers=layer
        ),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, enter in list(sides.items()) if turn % 2 else reversed(sides.items()):
            with enter():
                step()
                start = time.perf_counter()
                for _ in range(STEPS):
                    step()
                if turn:
                    times[side].append((time.perf_counter() - start) / STEPS)
    case = f"decode B={BATCH}, {len(bank)} concepts, block {layer[0]}"
    return [Result(case, side, "unwatched", times[side], times["unwatched"]) for side in sides]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(machine())
    model, _ = es.load("smollm2")
    results = measure(model, options.rounds)
    print(summary(results))
    save("monitoring", results)


if __name__ == "__main__":
    main()
