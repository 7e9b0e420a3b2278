"""One program or metric of a definition, read and written; errors say the path, what came and what is expected."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from emosteer import programs as verbs
from emosteer.programs import VERBS, Program

from ..metrics import KINDS, Metric


class DefinitionError(ValueError):
    """What does not fit in a definition: `path: got …, expected …`."""


def wrong(path: str, got: Any, expected: str) -> DefinitionError:
    """The error of a value that does not fit."""
    return DefinitionError(f"{path}: got {shown(got)}, expected {expected}")


def shown(value: Any) -> str:
    """A value for a message: its type, and what fits of it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def program_of(path: str, given: Any) -> Program:
    """`{add: {name: calm, strength: 0.1}}`, or a list of such that act together.

    Raises:
        DefinitionError: with the path of what is wrong.
    """
    parts = given if isinstance(given, list) else [given]
    total = Program()
    for j, part in enumerate(parts):
        here = f"{path}[{j}]" if isinstance(given, list) else path
        if not isinstance(part, Mapping) or len(part) != 1 or next(iter(part)) not in VERBS:
            raise wrong(here, part, f"a concept, or one of {', '.join(VERBS)} with its arguments")
        ((verb, arguments),) = part.items()
        if not isinstance(arguments, Mapping):
            raise wrong(f"{here}.{verb}", arguments, "arguments such as {name: calm, strength: 0.1}")
        total = total + called(f"{here}.{verb}", getattr(verbs, verb), arguments)
    return total


def program_definition(program: Program) -> list[dict[str, Any]]:
    """What `program_of` reads back: one part a slot that can be written as a verb.

    Raises:
        ValueError: a slot that does several things at once, which no verb does.
    """
    found = []
    keep = {} if program.preserve_norm is None else {"preserve_norm": program.preserve_norm}
    for slot in program.slots:
        candidates = {
            "add": {"strength": slot.strength},
            "rotate": {"degrees": math.degrees(slot.rotate)},
            "hold": {"value": slot.low},
            "cap": {"high": slot.high},
            "floor": {"low": slot.low},
        }
        for verb, arguments in candidates.items():
            if not all(math.isfinite(value) for value in arguments.values()):
                continue
            made = getattr(verbs, verb)(slot.name, *arguments.values()).slots[0]
            if made == slot:
                found.append({verb: {"name": slot.name, **arguments, **keep}})
                break
        else:
            raise ValueError(f"the program {program} cannot be written in a definition")
    return found


def metric_of(path: str, given: Any) -> Metric:
    """`lexicon`, or `{choices: {options: [" A", " B"]}}`.

    Raises:
        DefinitionError: with the path of what is wrong.
    """
    if isinstance(given, str):
        given = {given: {}}
    if not isinstance(given, Mapping) or len(given) != 1:
        raise wrong(path, given, f"one of {', '.join(sorted(KINDS))}, alone or with its arguments")
    ((kind, arguments),) = given.items()
    if kind not in KINDS:
        raise DefinitionError(f"{path}: no metric {kind!r}; there are {', '.join(sorted(KINDS))}")
    if isinstance(arguments, list) and kind in ("choices", "phrases"):
        arguments = {"options" if kind == "choices" else "texts": arguments}
    if arguments is not None and not isinstance(arguments, Mapping):
        raise wrong(f"{path}.{kind}", arguments, "arguments by name")
    return called(f"{path}.{kind}", KINDS[kind], arguments or {})


def called(path: str, function: Any, arguments: Mapping[str, Any]) -> Any:
    """A function, called with what a definition says.

    Raises:
        DefinitionError: an unknown or missing argument, or what the function raises.
    """
    known = inspect.signature(function).parameters
    for key in arguments:
        if key not in known:
            raise DefinitionError(f"{path}.{key}: unknown; known are {', '.join(known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise DefinitionError(f"{path}.{key}: missing")
    try:
        return function(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise DefinitionError(f"{path}: {error}") from None
