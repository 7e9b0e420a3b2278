"""What a request asks to be read of its own stream, as plain values beside its program.

A reading belongs to a token of the text: the stream after a block at that token, as it is steered. The stream at the
prompt's last token is the one that the first generated token is drawn from, so the places "-1:", which are read unless
others are asked for, give one reading for each generated token: of the stream that it was drawn from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emosteer import spelling

# The keys of a request's `extra_args`. One of the first two is there where something is read.
READ, STOP_AT, READ_BANK, READ_LAYERS, READ_POSITIONS, READ_AS, READ_UNIT = (
    "emosteer_read",
    "emosteer_stop_at",
    "emosteer_read_bank",
    "emosteer_read_layers",
    "emosteer_read_positions",
    "emosteer_read_as",
    "emosteer_read_unit",
)
READ_KEYS = (READ, STOP_AT, READ_BANK, READ_LAYERS, READ_POSITIONS, READ_AS, READ_UNIT)
FOLDS, UNITS = ("each", "sum", "mean", "max"), ("z", "projection")
# Concepts of one request.
MOST_CONCEPTS = 1000

_CLAUSE = re.compile(
    r'\s*("(?:[^"\\]|\\.)*"|[^;">]*?)\s*>\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?:;|$)'
)


@dataclass(frozen=True)
class Reads:
    """Concepts, layers and places to read.

    Attributes:
        concepts: names.
        stop_at: `(concept, bound)`: a reading above it at a place that is read ends the request.
        bank: name of the bank; None: that of the program, or the only one.
        layers: as `es.steer` takes them, lists as tuples; None: the readable layer nearest to two thirds of the depth.
        positions: as of a program, in words (`spelling.positions`).
        fold: "each" token by itself, or their "sum", "mean" or "max".
        unit: "z" (`ZScores`) or "projection", `<x − mean, v>` in mean residual norms, as `es.read` has them.
    """

    concepts: tuple[str, ...]
    stop_at: tuple[tuple[str, float], ...] = ()
    bank: str | None = None
    layers: Any = None
    positions: str = "-1:"
    fold: str = "each"
    unit: str = "z"

    @classmethod
    def of(cls, given: Mapping[str, Any], layers: Any, positions: Any, name: Any) -> Reads | None:
        """What keys and values ask for; None where they ask for no reading.

        Args:
            given: the keys of ours.
            layers, positions, name: check and read a value of theirs, `f(value, key)`.

        Raises:
            TypeError, ValueError: the key, what came and what is expected.
        """
        asked = [key for key in given if key in READ_KEYS]
        if not asked:
            return None
        if READ not in given and STOP_AT not in given:
            raise ValueError(f'{asked[0]} comes without concepts; give "{READ}": "calm, desperate" too')
        stop_at = _bounds(given.get(STOP_AT, ""))
        concepts = dict.fromkeys([*_names(given.get(READ, [])), *(concept for concept, _ in stop_at)])
        if not concepts:
            raise ValueError(f'{READ} names no concept; give names, like "calm, desperate"')
        at = given.get(READ_LAYERS)
        return cls(
            tuple(concepts),
            stop_at,
            name(given.get(READ_BANK), READ_BANK),
            None if at is None else layers(at, READ_LAYERS),
            positions(given.get(READ_POSITIONS, "-1:"), READ_POSITIONS),
            _one_of(READ_AS, given.get(READ_AS, "each"), FOLDS),
            _one_of(READ_UNIT, given.get(READ_UNIT, "z"), UNITS),
        )

    @property
    def spec(self) -> Any:
        """`positions` as `es.steer` takes them."""
        return spelling.positions(self.positions)

    def extra_args(self) -> dict[str, Any]:
        """What `of` reads back."""
        said: dict[str, Any] = {READ: list(self.concepts)}
        if self.stop_at:
            said[STOP_AT] = "; ".join(f"{json.dumps(concept)} > {bound!r}" for concept, bound in self.stop_at)
        if self.bank is not None:
            said[READ_BANK] = self.bank
        if self.layers is not None:
            said[READ_LAYERS] = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        return {**said, READ_POSITIONS: self.positions, READ_AS: self.fold, READ_UNIT: self.unit}


def spelled_bounds(stop_at: Mapping[str, float]) -> str:
    """The text of `{"desperate": 3.0}`, "desperate > 3.0".

    Raises:
        TypeError, ValueError: not names and finite numbers.
    """
    if not isinstance(stop_at, Mapping):
        raise TypeError(f'stop_at must map concepts to bounds, like {{"desperate": 3.0}}, got {stop_at!r}')
    for concept, bound in stop_at.items():
        right = isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
        if not isinstance(concept, str) or not right:
            raise ValueError(f"stop_at[{concept!r}] must be a finite number, got {bound!r}")
    return "; ".join(f"{json.dumps(concept)} > {float(bound)!r}" for concept, bound in stop_at.items())


def _names(given: Any) -> list[str]:
    names = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f'{READ} must be names, like "calm, desperate" or a list of them, got {given!r:.80}')
    if len(names) > MOST_CONCEPTS:
        raise ValueError(f"{READ} has {len(names):,} concepts, expected at most {MOST_CONCEPTS:,}")
    return list(names)


def _bounds(given: Any) -> tuple[tuple[str, float], ...]:
    """`desperate > 3; "a;b" > 2.5` → concepts and bounds."""
    if not isinstance(given, str):
        raise TypeError(f'{STOP_AT} must be a text like "desperate > 3", got {given!r:.80}')
    if len(given) > 10_000:
        raise ValueError(f"{STOP_AT} of {len(given):,} characters is too long: at most 10,000")
    found: dict[str, float] = {}
    at = 0
    while given[at:].strip():
        clause = _CLAUSE.match(given, at)
        name = "" if clause is None else clause[1]
        if clause is None or not name:
            raise ValueError(f'{STOP_AT} must be like "desperate > 3; angry > 2.5", got {given!r:.80}')
        name, bound = json.loads(name) if name.startswith('"') else name, float(clause[2])
        if not math.isfinite(bound) or name in found:
            raise ValueError(f"{STOP_AT} must give {name!r} one finite bound, got {given!r:.80}")
        found[name] = bound
        at = clause.end()
    return tuple(found.items())


def _one_of(key: str, given: Any, known: Iterable[str]) -> str:
    if given not in known:
        raise ValueError(f"{key} must be one of {', '.join(known)}, got {given!r:.80}")
    return given
