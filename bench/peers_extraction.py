"""Vectors from the same texts by repeng, steering-vectors, each alone and accelerated, and `es.extract`
(of all blocks, which the two read, and of the first two thirds, where concepts read best).

`python bench/peers_extraction.py [--rounds 3]` prints tokens per second and how far vectors are from the
library's own, and writes bench/results/peers_extraction.csv.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice

import numpy as np
import torch
from common import PACKAGES, Result, machine, save, summary

import emosteer as es

LIBRARIES = ("repeng", "steering-vectors")
POSITIVE, NEGATIVE, PAIRS, WORDS = "joyful", "desperate", 16, 60


def pairs() -> list[tuple[str, str]]:
    """The beginnings of stories about one emotion, each with one about another."""
    sides = []
    for emotion in (POSITIVE, NEGATIVE):
        stories = (story.text for story in es.emotions.corpus() if story.emotion == emotion)
        begun = [" ".join(text.split()[:length]) for text, length in zip(islice(stories, PAIRS), lengths())]
        sides.append(begun)
    short = min(map(len, sides))
    repeated = [[side[i % short] for i in range(PAIRS)] for side in sides]
    return [(f"One day. {a}", f"One day. {b}") for a, b in zip(*repeated)]


def lengths():
    """Words of each text, from a third of the most to the most."""
    return (WORDS // 3 + (i * 17) % (WORDS - WORDS // 3) for i in range(PAIRS))


def repeng(model, tokenizer, texts) -> dict[int, np.ndarray]:
    from repeng import ControlVector, DatasetEntry

    return ControlVector.train(model, tokenizer, [DatasetEntry(a, b) for a, b in texts]).directions


def steering_vectors(model, tokenizer, texts) -> dict[int, np.ndarray]:
    from steering_vectors import train_steering_vector

    found = train_steering_vector(model, tokenizer, texts)
    return {layer: v.float().numpy() for layer, v in found.layer_activations.items()}


def ours(model, tokenizer, texts, layers="all") -> dict[int, np.ndarray]:
    stories = [(label, text) for pair in texts for label, text in zip((POSITIVE, NEGATIVE), pair)]
    bank = es.extract(model, tokenizer, stories, neutral=(), skip_tokens=0, layers=layers, progress=False)
    return {layer: bank.directions[layer][0].numpy() for layer in bank.layers}


def apart(fast: dict[int, np.ndarray], alone: dict[int, np.ndarray]) -> float:
    """The largest 1 − cosine over layers."""
    cosines = [
        float(np.dot(fast[k], v) / np.linalg.norm(fast[k]) / np.linalg.norm(v)) for k, v in alone.items()
    ]
    return 1 - min(cosines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    packages = (*PACKAGES, *LIBRARIES)
    print(machine(packages))
    model, tokenizer = es.load("smollm2")
    texts = pairs()
    tokens = sum(len(ids) for ids in tokenizer([t for pair in texts for t in pair])["input_ids"])
    sides: dict[str, tuple[str | None, Callable]] = {
        "repeng": (None, repeng),
        "repeng accelerated": ("repeng", repeng),
        "steering-vectors": (None, steering_vectors),
        "steering-vectors accelerated": ("steering-vectors", steering_vectors),
        "es.extract": (None, ours),
        "es.extract to block 20": (None, partial(ours, layers=range(21))),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    vectors = {}
    for turn in range(options.rounds):
        order = list(sides.items())
        for side, (library, train) in order if turn % 2 else reversed(order):  # so that drift cancels
            with es.accelerate(library) if library else nullcontext():
                if not turn:
                    train(model, tokenizer, texts[:2])
                start = time.perf_counter()
                vectors[side] = train(model, tokenizer, texts)
                times[side].append(time.perf_counter() - start)
    case = f"{len(texts)} pairs, {tokens} tokens"
    results = []
    for side in sides:
        print(f"{side:30} {tokens / statistics.median(times[side]):8.0f} tokens/s")
        for other in LIBRARIES:
            if side != other and side.startswith(("es.extract", other)):
                results.append(Result(case, side, other, times[side], times[other]))
    for library in LIBRARIES:
        off = apart(vectors[f"{library} accelerated"], vectors[library])
        print(f"{library}: vectors accelerated are within {off:.1e} (1 - cosine) of its own")
    print(summary(results))
    save("peers_extraction", results, packages)


if __name__ == "__main__":
    main()
