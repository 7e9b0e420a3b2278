"""What the emotion-vectors paper found, looked for in a model of the user's: a report with pictures."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from emosteer.extraction import Collected, collect
from emosteer.models.blocks import find_decoder, resolve_layers
from emosteer.models.capture import layer_at_two_thirds

from ..corpus import corpus, neutral
from ..ratings import Ratings
from . import report
from .found import Found, Table
from .setting import Setting

__all__ = ["CONCEPTS", "STRENGTHS", "STUDIES", "Found", "Setting", "Table", "prepare", "validate"]

# In the order of the report; each is a module of this package with a function `study`.
STUDIES = (
    "geometry",
    "reading",
    "templates",
    "turns",
    "lens",
    "feels",
    "sentiment",
    "preference",
    "behaviour",
)
CONCEPTS = ("joyful", "calm", "desperate", "afraid", "angry", "sad", "proud", "disgusted")
STRENGTHS = (0.02, 0.035, 0.05)


def validate(
    model: Any,
    tok: Any,
    out: str | os.PathLike[str],
    *,
    stories: Iterable[Any] | None = None,
    studies: Sequence[str] = STUDIES,
    quick: bool = False,
    ratings: Ratings | None = None,
    bench_data: str | os.PathLike[str] | None = None,
    judges: Mapping[str, Callable[[str], bool]] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    batch_tokens: int = 4096,
    seed: int = 0,
    say: Callable[[str], Any] | None = None,
) -> list[Found]:
    """Run the studies and write `report.md`, `report.html`, pictures and `numbers.json` into a folder.

    Directions are extracted from the stories in one pass, at all layers (with `quick` up to two thirds
    of the depth), with `extract`'s defaults; readings are taken at the layer nearest to two thirds,
    which no result chooses. What a study does not find is reported like what it does.

    Args:
        model, tok: a causal language model and its tokenizer.
        out: the folder.
        stories: `Story`s; the corpus that comes along by default.
        studies: names out of `STUDIES`.
        quick: fewer layers, texts, strengths and seeds.
        ratings: human norms of one's own (`emosteer.emotions.ratings.read_ratings`).
        bench_data: a folder of emotion-vector-bench, whose stories other authors wrote.
        judges: name → function of an answer, for scenarios whose outcomes name one.
        strengths: of the steering, ascending fractions of the mean residual norm at the middle layers.
        batch_tokens: of the extraction.
        seed: of all draws.
        say: told what is being done.

    Raises:
        ValueError: an unknown study, too few emotions with human ratings, bad strengths.
    """
    unknown = [name for name in studies if name not in STUDIES]
    if unknown:
        raise ValueError(f"studies has {unknown[0]!r}; there are {', '.join(STUDIES)}")
    tell = say or (lambda _line: None)
    start = time.perf_counter()
    tell("directions")
    setting = prepare(
        model,
        tok,
        stories=stories,
        quick=quick,
        ratings=ratings,
        bench_data=bench_data,
        judges=judges,
        strengths=strengths,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    extraction = time.perf_counter() - start
    found = []
    for name in studies:
        tell(name)
        began = time.perf_counter()
        one = import_module(f"{__name__}.{name}").study(setting)
        one.seconds = time.perf_counter() - began
        found.append(one)
    provenance = setting.bank.provenance
    about = [
        f"Model {provenance['model']}, {find_decoder(model).depth} blocks; "
        f"directions at {len(setting.bank.layers)} of them "
        f"from {len(setting.stories)} stories of {len(setting.bank)} emotions "
        f"(skip {provenance['skip_tokens']} tokens, denoise {provenance['denoise']:g}).",
        f"Readings after block {setting.layer}; steering of blocks {setting.layers[0]} to {setting.layers[-1]}, "
        f"norm kept, strengths {', '.join(f'{s:g}' for s in setting.strengths)} of the mean residual norm.",
        f"{extraction:.0f} s for the directions, {time.perf_counter() - start:.0f} s in all, "
        f"on {platform.machine()} with "
        f"{torch.get_num_threads()} threads" + ("; the quick version." if quick else "."),
    ]
    report.write(Path(out), "Emotion vectors: what this model shows", about, found)
    return found


def prepare(
    model: Any,
    tok: Any,
    *,
    stories: Iterable[Any] | None = None,
    quick: bool = False,
    ratings: Ratings | None = None,
    bench_data: str | os.PathLike[str] | None = None,
    judges: Mapping[str, Callable[[str], bool]] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    batch_tokens: int = 4096,
    seed: int = 0,
    collected: Collected | None = None,
) -> Setting:
    """The setting of a validation: one pass over the stories, with one label a story.

    Args:
        collected: the moments of an earlier pass over the same stories, instead of a pass.

    The other arguments and errors are `validate`'s.
    """
    strengths = tuple(float(s) for s in strengths)
    if not strengths or list(strengths) != sorted(set(strengths)) or strengths[0] <= 0:
        raise ValueError(f"strengths must be positive numbers, ascending, at least one, got {strengths}")
    if bench_data is not None and not Path(bench_data, "stories").is_dir():
        raise FileNotFoundError(f"{os.fspath(bench_data)} has no folder stories; give emotion-vector-bench's")
    kept = tuple(corpus() if stories is None else stories)
    if quick:
        topics = list(dict.fromkeys(story.topic for story in kept))[:2]
        kept = tuple(story for story in kept if story.topic in topics)
    depth = find_decoder(model).depth
    layer = layer_at_two_thirds(range(depth), depth)
    # Whoever is in a hurry stops at the reading layer.
    layers = range(layer + 1) if quick else range(depth)
    if collected is None:
        collected = collect(
            model,
            tok,
            ((str(i), story.text) for i, story in enumerate(kept)),
            neutral=neutral(),
            layers=layers,
            within=False,
            batch_tokens=batch_tokens,
            progress=False,
        )
    bank = collected.regrouped({str(i): story.emotion for i, story in enumerate(kept)}).bank()
    concepts = tuple(name for name in CONCEPTS if name in bank) or bank.names[:4]
    middle = tuple(one for one in resolve_layers("middle", depth) if one in bank.layers)
    return Setting(
        model,
        tok,
        kept,
        collected,
        bank,
        layer,
        middle,
        concepts[:4] if quick else concepts,
        strengths,
        quick,
        seed,
        ratings,
        None if bench_data is None else Path(bench_data),
        dict(judges or {}),
    )
