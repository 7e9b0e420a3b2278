"""The demo: extract, steer one prompt in one batch with a program a row, draw the circumplex, measure the cost."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

EMOTIONS = [
    "joyful",
    "happy",
    "excited",
    "delighted",
    "cheerful",
    "grateful",
    "hopeful",
    "playful",
    "calm",
    "peaceful",
    "relaxed",
    "content",
    "serene",
    "sleepy",
    "bored",
    "sad",
    "lonely",
    "gloomy",
    "depressed",
    "desperate",
    "afraid",
    "scared",
    "terrified",
    "angry",
    "furious",
    "annoyed",
    "disgusted",
    "tense",
]
PROMPT = "When I got home this evening,"
STRENGTH = 0.05
LAYERS = range(12, 22)


def run(out: Path) -> None:
    """Write `numbers.json` and `circumplex.png` into `out`, and print what happened."""
    import torch

    import emosteer as es

    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    model, tok = es.load("smollm2")
    start = time.perf_counter()
    bank = es.extract(model, tok, es.emotions.corpus().only(EMOTIONS), layers=LAYERS)
    seconds = time.perf_counter() - start
    bank.save(out / "emotions.safetensors")
    console.print(f"{len(bank)} emotion directions at blocks {LAYERS[0]}-{LAYERS[-1]} in {seconds:.0f} s")

    programs = {
        "unsteered": None,
        **{name: es.add(name, STRENGTH) for name in ("joyful", "desperate", "calm", "furious")},
        "calm, desperate capped": es.add("calm", STRENGTH) + es.cap("desperate", 0.0),
    }
    inputs = tok([PROMPT] * len(programs), return_tensors="pt")
    with es.steer(model, bank, list(programs.values()), layers=LAYERS):
        text = model.generate(**inputs, max_new_tokens=30, do_sample=False, pad_token_id=tok.pad_token_id)
    texts = dict(zip(programs, (tok.decode(row, skip_special_tokens=True) for row in text)))
    table = Table(title="one batch, a program a row", show_lines=True)
    table.add_column("program", no_wrap=True)
    table.add_column("greedy continuation")
    for name, words in texts.items():
        table.add_row(name, words)
    console.print(table)

    numbers: dict[str, Any] = {"extraction_seconds": round(seconds, 1), "texts": texts}
    numbers["steered_over_unsteered"] = _cost(model, bank, es, torch)
    found = es.circumplex(bank, 20)
    found.plot(out / "circumplex.png")
    numbers["circumplex"] = {"valence_r": found.valence_r, "arousal_r": found.arousal_r, "layer": found.layer}
    console.print(repr(found))
    console.print(
        f"decoding 16 rows, 16 programs, all norms kept: {numbers['steered_over_unsteered']:.3f} × unsteered"
    )
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1))
    console.print(f"written to {out}/: circumplex.png, emotions.safetensors, numbers.json")


def _cost(model: Any, bank: Any, es: Any, torch: Any, rounds: int = 7) -> float:
    """Median over rounds of a steered decode step's time over an unsteered one's, run in turn."""
    ids = torch.randint(10, 1000, (16, 1))
    ratios = []
    with torch.no_grad():
        cache = model(input_ids=ids.repeat(1, 16), use_cache=True, logits_to_keep=1).past_key_values

        def step() -> float:
            start = time.perf_counter()
            model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.crop(-1)
            return time.perf_counter() - start

        steering = es.steer(model, bank, [es.add(name, STRENGTH) for name in bank.names[:16]], layers=LAYERS)
        for _ in range(rounds):
            step()
            plain = step()
            with steering:
                step()
                ratios.append(step() / plain)
    return statistics.median(ratios)
