"""Programs and layers as a shell or another tool's arguments can say them."""

from __future__ import annotations

from typing import Any

import emosteer.programs as verbs
from emosteer.programs import Program

VERBS = ("add", "ablate", "cap", "floor", "hold", "rotate")


def program_of(given: Program | str | None) -> Program:
    """A program from words: terms of a verb, a concept and a number, joined by " + ".

        program_of("add calm 0.1 + ablate angry")

    Raises:
        ValueError: the term and what is expected.
    """
    if given is None:
        return Program()
    if isinstance(given, Program):
        return given
    if not isinstance(given, str):
        raise ValueError(f"steer must be a program, or one in words, got {given!r}")
    total = Program()
    for term in given.split(" + "):
        verb, _, rest = term.strip().partition(" ")
        name, _, number = (rest.strip(), "", None) if verb == "ablate" else rest.strip().rpartition(" ")
        try:
            if verb not in VERBS or not name.strip():
                raise ValueError("no such verb" if verb not in VERBS else "no concept")
            arguments = () if number is None else (float(number),)
            total = total + getattr(verbs, verb)(name.strip(), *arguments)
        except ValueError as error:
            raise ValueError(
                f'steer has the term {term.strip()!r} ({error}); expected "add calm 0.1", with one of '
                f'{", ".join(VERBS)} (ablate takes no number), several joined by " + "'
            ) from None
    return total


def layers_of(given: Any) -> Any:
    """What `es.steer` takes for layers, from words: "middle", "all", "14", "0.66", "12+13+14", or a list of them.

    Raises:
        ValueError: what came and what is expected.
    """
    if isinstance(given, str) and given not in ("middle", "all"):
        given = given.split("+")
    if not isinstance(given, (list, tuple)):
        return given
    try:
        return [_layer(part) for part in given]
    except ValueError:
        raise ValueError(
            f'layers must be "middle", "all", a number, a fraction like 0.66 or several like 12+13, got {given!r}'
        ) from None


def _layer(part: Any) -> Any:
    return part if not isinstance(part, str) else float(part) if "." in part else int(part)
