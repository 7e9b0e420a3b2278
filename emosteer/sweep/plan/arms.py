"""Names, programs and strengths → the arms of a sweep, with the controls they are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from emosteer.bank import Bank
from emosteer.programs import Program, add

from .units import Arm

UNSTEERED, RANDOM = "unsteered", "random"
CONTROLS = (UNSTEERED, RANDOM)


def arms_of(
    bank: Bank, programs: Iterable[str | Program] | str | None, strengths: Sequence[float]
) -> list[Arm]:
    """One arm for each name and strength, and one for each program.

    Args:
        bank: what names are looked up in.
        programs: names of concepts, taken at every strength, and programs, taken as they are; None or
            "all" for every concept of the bank.
        strengths: for names.

    Raises:
        TypeError, ValueError: an unknown name, a strength of 0 or not finite, names without strengths.
    """
    given: list[Any] = list(bank.names) if programs is None or programs == "all" else []
    if not given:
        given = [programs] if isinstance(programs, (str, Program)) else list(programs or ())
    arms: list[Arm] = []
    for number, item in enumerate(given):
        if isinstance(item, Program):
            for name in item.names:
                bank.index(name)
            if item.slots:
                arms.append(_arm(item))
        elif isinstance(item, str):
            bank.index(item)
            if not len(strengths):
                raise ValueError(
                    f"programs[{number}] {item!r} is a name and needs strengths=…, e.g. (0.05, 0.1)"
                )
            arms += [_arm(add(item, strength)) for strength in strengths if strength]
        else:
            raise TypeError(f"programs[{number}] must be a name or a program, got {type(item).__name__}")
    return list(dict.fromkeys(arms))


def _arm(program: Program, control: str = "") -> Arm:
    (only, *others) = program.slots
    pushes = not others and only.strength and not (only.clamps or only.rotate)
    return Arm(program, "+".join(program.names), only.strength if pushes else math.nan, control)


def with_controls(
    bank: Bank,
    arms: Sequence[Arm],
    controls: Sequence[str] = CONTROLS,
    random_directions: int = 4,
    seed: int = 0,
) -> tuple[Bank, list[Arm]]:
    """The bank and arms with controls in front.

    The random control takes each different program with its directions replaced by random ones of the
    same (unit) length, the same at every layer; so it changes the stream by the same norm.

    Args:
        controls: "unsteered", "random", both or none.
        random_directions: how many there are; each makes an arm of its own.
        seed: of the random directions.

    Raises:
        ValueError: an unknown control, or a bank that has a concept named like a control.
    """
    unknown = [c for c in controls if c not in CONTROLS]
    if unknown:
        raise ValueError(f"controls must be of {', '.join(CONTROLS)}, got {unknown[0]!r}")
    if not isinstance(random_directions, int) or random_directions < 1:
        raise ValueError(f"random_directions must be an integer of at least 1, got {random_directions!r}")
    found = [Arm(Program(), UNSTEERED, 0.0, UNSTEERED)] if UNSTEERED in controls else []
    if RANDOM in controls and arms:
        shapes = list(dict.fromkeys(_renamed(arm.program, 0) for arm in arms))
        found += [
            replace(_arm(_renamed(shape, k), RANDOM), concept=f"{RANDOM} {k}")
            for shape in shapes
            for k in range(random_directions)
        ]
        names = list(dict.fromkeys(name for arm in found for name in arm.program.names))
        taken = [name for name in names if name in bank]
        if taken:
            raise ValueError(f"the bank has a concept {taken[0]!r}, which is what a random control is called")
        bank = with_random(bank, names, seed)
    return bank, [*found, *arms]


def _renamed(program: Program, k: int) -> Program:
    """The same program on the k-th random directions."""
    order = {name: j for j, name in enumerate(dict.fromkeys(program.names))}
    slots = (
        replace(slot, name=f"{RANDOM} {k}" + (f".{order[slot.name]}" if order[slot.name] else ""))
        for slot in program.slots
    )
    return Program(tuple(slots), program.preserve_norm)


def with_random(bank: Bank, names: Sequence[str], seed: int) -> Bank:
    """The bank and further random unit directions, each the same at every layer and for every order of names."""
    rows = []
    for name in names:
        number, _, place = name.removeprefix(f"{RANDOM} ").partition(".")
        generator = torch.Generator().manual_seed((seed * 1_000_003 + int(number)) * 101 + int(place or 0))
        rows.append(torch.randn(bank.dim, generator=generator))
    random = torch.stack(rows).to(bank.device)
    return Bank(
        [*bank.names, *names],
        {layer: torch.cat([bank.directions[layer], random]) for layer in bank.layers},
        scale=bank.scale or None,
        provenance=bank.provenance,
    )
