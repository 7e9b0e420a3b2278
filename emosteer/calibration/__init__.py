"""How hard to steer: the strongest strength whose text stays coherent, measured against random directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from emosteer.bank import Bank
from emosteer.models.blocks import find_decoder, resolve_layers
from emosteer.steering import CALIBRATION, calibration_key

from .grid import Grid
from .measured import Measurement
from .result import Calibration

__all__ = ["Calibration", "Measurement", "calibrate"]

STRENGTHS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)

# Openings without emotional colour, continued greedily.
OPENINGS = (
    "Today I went to",
    "The man at the counter said",
    "When she opened the door,",
    "My plan for the weekend is",
    "He looked at the paper and",
    "The meeting this afternoon",
    "I have been thinking about",
    "After dinner, they",
)

# Sentences whose next word says how someone feels.
FEELS = (
    "Right now I feel",
    "If I had to name my mood in a word, it would be",
    "She says that she is feeling",
)


def calibrate(
    model: Any,
    tok: Any,
    bank: Bank,
    concepts: str | Iterable[str],
    *,
    strengths: Iterable[float] = STRENGTHS,
    layers: Any = "middle",
    layer_sets: Iterable[Any] | None = None,
    openings: Sequence[str] = OPENINGS,
    feels: Sequence[str] = FEELS,
    max_new_tokens: int = 30,
    max_perplexity: float = 2.0,
    max_repetition: float = 0.15,
    batch_rows: int = 64,
    seed: int = 0,
) -> Calibration:
    """Measure a grid of strengths and layers; the bank remembers the strongest that stays coherent.

    Each opening is continued greedily under every strength of the concept and of a random direction,
    all in mixed batches with a program a row. Coherence is judged by the unsteered model. Afterwards
    `es.steer(model, bank, concept, "auto", layers=…)` uses what was found for those layers; the bank
    keeps it in its provenance, so it is saved with it.

    Args:
        model, tok: a causal language model and its tokenizer.
        bank: directions with scales.
        concepts: one name or several.
        strengths: fractions of the mean residual norm, positive or negative.
        layers: as in `es.steer`; or `layer_sets`, several such to compare.
        openings: texts to continue.
        feels: sentences that the concept's word would complete.
        max_new_tokens: length of the continuations.
        max_perplexity, max_repetition: what counts as coherent (see `Calibration`).
        batch_rows: rows of a batch.
        seed: of the random directions.

    Raises:
        ValueError: an unknown concept, no strengths or openings, a strength of 0 or that is not finite.
    """
    names = [concepts] if isinstance(concepts, str) else list(concepts)
    for name in names:
        bank.index(name)
    grid = [float(s) for s in strengths]
    if not grid or not all(math.isfinite(s) and s != 0 for s in grid):
        raise ValueError(f"strengths must be finite numbers other than 0, at least one, got {grid}")
    if not openings or not feels or not names:
        raise ValueError("concepts, openings and feels must have at least one entry each")
    if max_new_tokens < 1 or batch_rows < 1:
        raise ValueError(
            f"max_new_tokens and batch_rows must be at least 1, got {max_new_tokens} and {batch_rows}"
        )
    depth = find_decoder(model).depth
    sets = [resolve_layers(one, depth) for one in (layer_sets if layer_sets is not None else [layers])]
    run = Grid(model, tok, bank, names, openings, feels, max_new_tokens, batch_rows, seed)
    measurements = [m for chosen in sets for m in run.measure(grid, chosen)]
    result = Calibration(tuple(measurements), max_perplexity, max_repetition)
    kept = bank.provenance.setdefault(CALIBRATION, {})
    for name in names:
        for chosen in sets:
            best = result.strongest(name, chosen)
            kept.setdefault(name, {})[calibration_key(chosen)] = None if best is None else best.strength
    return result
