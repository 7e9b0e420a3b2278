"""Extraction against its parts and against others: `python bench/extraction.py [--rounds 5] [--stories 64]`.

Every comparison runs both sides in turn in one process; each round gives one ratio.

- the whole pass to two thirds of the depth ÷ a bare forward of those blocks on the same batches
- the same ÷ a full forward with `output_hidden_states`, texts in file order, 32 a batch
- peak memory above the model, of 100 and of 10,000 texts, each in a process of its own

Writes bench/results/extraction.csv and extraction_memory.csv; for another model than the built-in one
extraction_<model>.csv, times alone. Other libraries: bench/peers_extraction.py.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from common import RESULTS, Result, machine, save, summary

import emosteer as es
from emosteer.models.batching import batches, longest, tokenised
from emosteer.models.capture import Capture

DEPTH, BATCH, BATCH_TOKENS = 2 / 3, 32, 4096
MEMORY_TEXTS, MEMORY_LAYER, MEMORY_WORDS = (100, 10_000), 1, 40
# Freed tensors leave the process, so that the peak is what is held and not what the allocator keeps.
MEMORY_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def in_turn(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, after one round that does not count; the order alternates so that drift cancels."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, run in list(sides.items()) if turn % 2 else reversed(sides.items()):
            start = time.perf_counter()
            run()
            if turn:
                times[side].append(time.perf_counter() - start)
    return times


def against_forwards(model, tok, count: int, rounds: int) -> list[Result]:
    stories = list(es.emotions.corpus())
    random.Random(0).shuffle(stories)
    stories = stories[:count]
    texts = [story.text for story in stories]
    last = round(DEPTH * model.config.num_hidden_layers)
    ready = batches(tokenised(tok, texts, [0] * count, longest(tok, model), range(count)), BATCH_TOKENS)
    bare = Capture(model, (last,))

    def forward() -> None:
        for batch in ready:
            bare.run(batch.ids, lambda layer, hidden: None)

    def every_hidden_state() -> None:
        for start in range(0, count, BATCH):
            inputs = tok(texts[start : start + BATCH], return_tensors="pt", padding=True)
            model(**inputs, output_hidden_states=True)

    cells = sum(batch.ids.numel() for batch in ready)
    tokens = sum(len(text.ids) for batch in ready for text in batch.texts)
    print(f"{count} stories, {tokens} tokens in {len(ready)} batches, {cells / tokens - 1:.1%} padding")
    times = in_turn(
        {
            "es.extract": lambda: es.extract(
                model,
                tok,
                stories,
                neutral=(),
                layers=range(last + 1),
                batch_tokens=BATCH_TOKENS,
                progress=False,
            ),
            "bare forward": forward,
            "all hidden states": every_hidden_state,
        },
        rounds,
    )
    return [
        Result(f"{count} stories to block {last}", "es.extract", other, times["es.extract"], times[other])
        for other in ("bare forward", "all hidden states")
    ]


def peak_memory(count: int) -> tuple[int, int]:
    """kB of this process before and at most during an extraction of `count` short texts."""
    model, tok = es.load("smollm2")
    words = es.emotions.corpus()[0].text.split()

    def texts(n: int):
        rng = random.Random(0)
        for k in range(n):
            yield f"label {k % 50}", " ".join(rng.sample(words, MEMORY_WORDS))

    def extract(n: int, batch_tokens: int) -> None:
        es.extract(
            model, tok, texts(n), neutral=(), layers=[MEMORY_LAYER], batch_tokens=batch_tokens, progress=False
        )

    def peak() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    extract(10, 64)  # what is imported and allocated once
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew: loading does not count
    before = peak()
    extract(count, BATCH_TOKENS)  # even 100 texts fill a batch
    return before, peak()


def memory() -> None:
    rows = []
    for count in MEMORY_TEXTS:
        done = subprocess.run(
            [sys.executable, __file__, "--memory-of", str(count)],
            env={**os.environ, **MEMORY_ENVIRONMENT},
            capture_output=True,
            text=True,
            check=True,
        )
        before, peak = map(int, done.stdout.split()[-2:])
        rows.append({"texts": count, "before_kB": before, "peak_kB": peak, "above_kB": peak - before})
        print(rows[-1])
    print(f"growth: {rows[-1]['above_kB'] / rows[0]['above_kB']:.3f}")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "extraction_memory.csv").open("w", newline="") as file:
        file.write(f"# python bench/extraction.py\n# {machine()}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stories", type=int, default=64)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.memory_of:
        print(*peak_memory(options.memory_of))
        return
    print(machine())
    model, tok = es.load(options.model)
    results = against_forwards(model, tok, options.stories, options.rounds)
    print(summary(results))
    if options.model != "smollm2":  # the rest depends on no model
        save(f"extraction_{options.model}", results)
        return
    save("extraction", results)
    memory()


if __name__ == "__main__":
    main()
