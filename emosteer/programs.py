"""Steering programs: what to do to one row of a batch, in the words of the researcher."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# The functions of this module that make a program, by name.
VERBS = ("add", "ablate", "cap", "floor", "hold", "rotate")
# preserve_norm of a table row
NOT_PRESERVED, WHOLE_ROW, ORTHOGONAL_PART = 0, 1, 2


@dataclass(frozen=True)
class Slot:
    """One direction of a program: pushed by `strength`, held within `[low, high]`, turned to by `rotate` radians."""

    name: str
    strength: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    rotate: float = 0.0

    @property
    def clamps(self) -> bool:
        return self.low > -math.inf or self.high < math.inf


@dataclass(frozen=True)
class Program:
    """A sum of slots that act at once, from the same residual row; made by `add`, `cap` and friends.

    Attributes:
        slots: the directions and what is done with each.
        preserve_norm: keep the row's norm: None as the steering default says, True, False.
    """

    slots: tuple[Slot, ...] = ()
    preserve_norm: bool | None = None

    def __add__(self, other: Program) -> Program:
        if not isinstance(other, Program):
            return NotImplemented
        a, b = self.preserve_norm, other.preserve_norm
        if a is not None and b is not None and a != b:
            raise ValueError(
                f"preserve_norm is {a} in one part of the program and {b} in the other; a row has one"
            )
        return Program(self.slots + other.slots, b if a is None else a)

    def __mul__(self, factor: float) -> Program:
        """The same program with every strength and angle multiplied; bounds stay."""
        factor = _finite("factor", factor)
        return replace(
            self,
            slots=tuple(
                replace(slot, strength=slot.strength * factor, rotate=slot.rotate * factor)
                for slot in self.slots
            ),
        )

    __rmul__ = __mul__

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.slots)

    def norm_form(self, default: bool = True) -> int:
        """The table's `preserve_norm`: the whole row, or only what is orthogonal where a bound must hold."""
        keep = default if self.preserve_norm is None else self.preserve_norm
        if not keep:
            return NOT_PRESERVED
        return ORTHOGONAL_PART if any(slot.clamps for slot in self.slots) else WHOLE_ROW

    def __str__(self) -> str:
        return " + ".join(_describe(slot) for slot in self.slots) or "none"


def add(name: str, strength: float, *, preserve_norm: bool | None = None) -> Program:
    """Push along a direction by `strength` units: `y = x + strength·u·v`.

    A unit `u` is the layer's mean residual norm, or each token's own (`es.steer(…, relative=True)`).
    """
    return _one(preserve_norm, name, strength=_finite("strength", strength))


def ablate(name: str, *, preserve_norm: bool | None = None) -> Program:
    """Remove a direction: the projection on it becomes 0 (Arditi et al., 2024)."""
    return _one(preserve_norm, name, low=0.0, high=0.0)


def cap(name: str, high: float, *, preserve_norm: bool | None = None) -> Program:
    """Hold the projection at or below `high` units; a row already below is left bit for bit as it is."""
    return _one(preserve_norm, name, high=_finite("high", high))


def floor(name: str, low: float, *, preserve_norm: bool | None = None) -> Program:
    """Hold the projection at or above `low` units; a row already above is left bit for bit as it is."""
    return _one(preserve_norm, name, low=_finite("low", low))


def hold(name: str, value: float, *, preserve_norm: bool | None = None) -> Program:
    """Set the projection to `value` units."""
    value = _finite("value", value)
    return _one(preserve_norm, name, low=value, high=value)


def rotate(name: str, degrees: float, *, preserve_norm: bool | None = None) -> Program:
    """Turn the row by an angle towards a direction, keeping its norm; stops at the direction.

    A negative angle turns away and stops at the opposite direction.
    """
    degrees = _finite("degrees", degrees)
    if abs(degrees) > 180:
        raise ValueError(f"degrees must lie in [-180, 180], got {degrees:g}")
    return _one(preserve_norm, name, rotate=math.radians(degrees))


def _one(preserve_norm: bool | None, name: str, **slot: float) -> Program:
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a direction in the bank, got {type(name).__name__}")
    return Program((Slot(name, **slot),), preserve_norm)


def _finite(argument: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{argument} must be a finite number, got {number}")
    return number


def _describe(slot: Slot) -> str:
    parts = []
    if slot.strength:
        parts.append(f"{slot.strength:+g}")
    if slot.low == slot.high:
        parts.append(f"= {slot.low:g}")
    elif slot.clamps:
        if slot.low > -math.inf:
            parts.append(f"≥ {slot.low:g}")
        if slot.high < math.inf:
            parts.append(f"≤ {slot.high:g}")
    if slot.rotate:
        parts.append(f"turned {math.degrees(slot.rotate):+g}°")
    return " ".join([slot.name, *parts])
