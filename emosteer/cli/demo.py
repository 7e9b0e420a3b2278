"""The demo: extract, steer one prompt in one batch with a program a row, read two texts, draw the circumplex."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

PROMPT = "When I got home this evening,"
STRENGTH = 0.05
LAYERS = range(12, 22)
READ_AT = 18
TEXTS = {
    "good news": "The letter shook in her hands. After two years of waiting they had said yes, and she ran down "
    "the stairs three at a time to tell everyone in the house.",
    "a bad night": "He had called every number on the list and nobody picked up. The money was gone, the rent was "
    "due in the morning, and there was no one left to ask.",
}


def run(out: Path, emotions: tuple[str, ...] | None = None) -> None:
    """Write `index.html`, `numbers.json`, the pictures and the bank into `out`, and print what happened.

    Args:
        out: a folder, made if it is not there.
        emotions: only these; the whole corpus by default.
    """
    import emosteer as es

    from .demo_page import write

    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    model, tok = es.load("smollm2")
    stories = es.emotions.corpus() if emotions is None else es.emotions.corpus().only(emotions)
    start = time.perf_counter()
    bank = es.extract(model, tok, stories, layers=LAYERS)
    numbers: dict[str, Any] = {
        "concepts": len(bank),
        "stories": len(stories),
        "layers": list(LAYERS),
        "extraction_seconds": round(time.perf_counter() - start, 1),
    }
    bank.save(out / "emotions.safetensors")
    console.print(
        f"{len(bank)} emotion directions from {len(stories)} stories, blocks {LAYERS[0]} to {LAYERS[-1]}, "
        f"in {numbers['extraction_seconds']:.0f} s"
    )

    numbers["prompt"], numbers["texts"] = PROMPT, _steered(model, tok, bank, es)
    table = Table(title=f"“{PROMPT}” in one batch, a program a row", show_lines=True)
    table.add_column("program", no_wrap=True)
    table.add_column("greedy continuation")
    for name, words in numbers["texts"].items():
        table.add_row(name, words)
    console.print(table)

    readings, numbers["read"] = {}, {}
    for title, text in TEXTS.items():
        reading = es.read(model, tok, text, bank, layers=READ_AT)
        readings[title], numbers["read"][title] = reading, dict(reading.top(5))
        console.print(f"\n[bold]{title}[/bold]")
        console.print(reading.table(5))
        console.print(reading.heatmap())
        slug = title.replace(" ", "_")
        reading.to_html(out / f"read_{slug}.html")
        reading.plot(out / f"read_{slug}.png")

    found = es.circumplex(bank, READ_AT)
    found.plot(out / "circumplex.png")
    numbers["circumplex"] = {
        "valence_r": found.valence_r,
        "arousal_r": found.arousal_r,
        "layer": found.layer,
        "explained": found.explained[:3].tolist(),
    }
    console.print(f"\n{found!r}")
    numbers["steered_over_unsteered"] = _cost(model, bank, es)
    console.print(
        f"decoding 16 rows, 16 programs, all norms kept: {numbers['steered_over_unsteered']:.3f} × the unsteered time"
    )
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1))
    write(out, numbers, readings)
    console.print(f"open {out}/index.html; the numbers are in {out}/numbers.json")


def _steered(model: Any, tok: Any, bank: Any, es: Any) -> dict[str, str]:
    """The continuation under each program, all in one batch."""
    programs: dict[str, Any] = {
        "none": None,
        **{
            name: es.add(name, STRENGTH)
            for name in ("joyful", "desperate", "calm", "furious")
            if name in bank
        },
    }
    if "calm" in bank and "desperate" in bank:
        programs["calm, desperate capped"] = es.add("calm", STRENGTH) + es.cap("desperate", 0.0)
    inputs = tok([PROMPT] * len(programs), return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with es.steer(model, bank, list(programs.values()), layers=LAYERS):
        rows = model.generate(**inputs, max_new_tokens=30, do_sample=False, pad_token_id=tok.pad_token_id)
    return {name: tok.decode(row[length:], skip_special_tokens=True) for name, row in zip(programs, rows)}


def _cost(model: Any, bank: Any, es: Any, rounds: int = 9) -> float:
    """Median over rounds of a steered decode step's time over an unsteered one's, run in turn."""
    import torch
    from transformers import DynamicCache

    from emosteer.models.caches import as_argument

    ids = torch.randint(10, 1000, (16, 1))
    ratios = []
    cache = DynamicCache(config=model.config)
    given = as_argument(model, cache)
    with torch.no_grad():
        model(input_ids=ids.repeat(1, 16), use_cache=True, logits_to_keep=1, **given)

        def step() -> float:
            start = time.perf_counter()
            model(input_ids=ids, use_cache=True, **given)
            cache.crop(-1)
            return time.perf_counter() - start

        programs = [es.add(bank.names[row % len(bank)], STRENGTH) for row in range(16)]
        steering = es.steer(model, bank, programs, layers=LAYERS)
        for _ in track(range(rounds), "measuring", transient=True):
            step()
            plain = step()
            with steering:
                step()
                ratios.append(step() / plain)
    return statistics.median(ratios)
