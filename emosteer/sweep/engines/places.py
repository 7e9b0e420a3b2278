"""Units by where they are steered: layers and positions, which a batch has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from .work import Work

# Units that are looked at together, to sort them by length.
WINDOW = 4096


def by_place(works: Iterable[Work]) -> Iterator[tuple[tuple[tuple[int, ...], str], Iterator[Work]]]:
    """`((layers, positions), works steered there)`, one after another; the works of one are to be taken first."""
    for at, group in groupby(_settled(works), key=lambda pair: pair[0]):
        yield at or ((), "all"), (work for _, work in group)


def _settled(works: Iterable[Work]) -> Iterator[tuple[Any, Work]]:
    """Works with where they are steered; an unsteered one goes along with whatever comes next to it."""
    waiting: list[Work] = []
    at = None
    for work in works:
        here = (work.unit.layers, work.unit.positions) if work.unit.layers else None
        if here is None and at is None and len(waiting) < WINDOW:
            waiting.append(work)
            continue
        at = here or at
        yield from ((at, one) for one in waiting)
        waiting.clear()
        yield at, work
    yield from ((at, one) for one in waiting)
