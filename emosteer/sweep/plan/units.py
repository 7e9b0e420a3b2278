"""The smallest piece of work of a sweep, a unit: one prompt under one arm with one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from emosteer.programs import Program

from .identity import digest


@dataclass(frozen=True)
class Prompt:
    """A prompt of a sweep.

    Attributes:
        label: how the table calls it.
        text: what the model reads, a chat template's marks included.
        tokens: the ids of it.
    """

    label: str
    text: str
    tokens: tuple[int, ...]

    @cached_property
    def id(self) -> str:
        """Hex digest of the tokens."""
        return digest(list(self.tokens), size=8)


@dataclass(frozen=True)
class Arm:
    """One program of a sweep.

    Attributes:
        concept: the directions it acts on, joined by "+".
        strength: of a program that pushes along one direction, else NaN.
        control: "" for what is studied, "random" or "unsteered" for what it is compared with.
    """

    program: Program
    concept: str
    strength: float
    control: str = ""


@dataclass(frozen=True)
class Unit:
    """One prompt under one program with one seed: the smallest piece of work.

    Attributes:
        id: hex digest of all that determines what the steered model does with it: the model, the
            prompt's tokens, the program with the bits of its directions, seed, positions and layers.
            Metrics, and how much text is generated, are hashed apart (`Metric.id`).
        layers: the steered blocks; empty for an unsteered unit, as `positions` is then.
    """

    id: str
    model_id: str
    prompt: Prompt
    arm: Arm
    program_id: str
    seed: int
    positions: str
    layers: tuple[int, ...]

    @property
    def program(self) -> Program:
        return self.arm.program

    def coordinates(self) -> dict[str, Any]:
        """What `exclude` and `where` are compared with."""
        return {
            "concept": self.arm.concept,
            "strength": self.arm.strength,
            "control": self.arm.control,
            "prompt": self.prompt.label,
            "seed": self.seed,
            "positions": self.positions,
            "layers": list(self.layers),
        }
