"""The grid of a sweep as a stream of units; it is never held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from emosteer.bank import Bank
from emosteer.spelling import spelled_positions

from .identity import ProgramIds, digest
from .units import Arm, Prompt, Unit


class Plan:
    """concepts × strengths × prompts × seeds × positions × layer sets, and their controls.

    Iterating yields units in a fixed order, as often as wanted: layer sets outermost, then positions,
    prompts, arms and seeds; so neighbours share what can be shared. Memory is that of the axes, not of
    their product. Unsteered units come once, with the first layer set and positions.

    Args:
        model_id: hash of the model (`identity.model_id`).
        bank: the directions of all programs, random controls among them.
        prompts, arms, seeds, positions, layers: the axes; positions as labels.
        exclude: mappings of coordinates; a unit that agrees with all of one is left out. A value may
            be a list of several.
        where: keeps a unit if it says so; of `Unit.coordinates()`.
        relative: strengths are fractions of each token's own norm.
    """

    def __init__(
        self,
        model_id: str,
        bank: Bank,
        prompts: Sequence[Prompt],
        arms: Sequence[Arm],
        *,
        seeds: Sequence[int] = (0,),
        positions: Sequence[Any] = ("all",),
        layers: Sequence[tuple[int, ...]],
        exclude: Sequence[Mapping[str, Any]] = (),
        where: Callable[[dict[str, Any]], bool] | None = None,
        relative: bool = False,
    ) -> None:
        self.model_id, self.bank, self.relative = model_id, bank, relative
        self.prompts, self.arms, self.seeds = tuple(prompts), tuple(arms), tuple(seeds)
        self.positions = tuple(spelled_positions(p) for p in positions)
        self.layers = tuple(tuple(one) for one in layers)
        self.exclude, self.where = tuple(exclude), where
        self._program_ids = ProgramIds(bank, relative)

    @property
    def size(self) -> int:
        """The number of units, before `exclude` and `where` take any out."""
        steered = sum(bool(arm.program.slots) for arm in self.arms)
        sets = len(self.layers) * len(self.positions)
        return len(self.prompts) * len(self.seeds) * (steered * sets + len(self.arms) - steered)

    def axes(self) -> dict[str, Any]:
        """The values of each axis as hashes: what tells whether a stored result belongs to this plan."""
        programs = {self._program_ids.of(arm.program, layers) for arm in self.arms for layers in self.layers}
        return {
            "model_id": self.model_id,
            "prompt_id": sorted({prompt.id for prompt in self.prompts}),
            "program_id": sorted(programs),
            "seed": sorted(set(self.seeds)),
            "positions": sorted({*self.positions, ""}),
        }

    def __iter__(self) -> Iterator[Unit]:
        unsteered_are_out = False
        for layers in self.layers:
            for positions in self.positions:
                for prompt in self.prompts:
                    yield from self._units(prompt, layers, positions, unsteered_are_out)
                unsteered_are_out = True

    def _units(
        self, prompt: Prompt, layers: tuple[int, ...], positions: str, steered_only: bool
    ) -> Iterator[Unit]:
        for arm in self.arms:
            steered = bool(arm.program.slots)
            if not steered and steered_only:
                continue
            at = (positions, layers) if steered else ("", ())
            program_id = self._program_ids.of(arm.program, at[1])
            for seed in self.seeds:
                name = digest(self.model_id, prompt.id, program_id, seed, at[0], list(at[1]))
                unit = Unit(name, self.model_id, prompt, arm, program_id, seed, *at)
                if self._wanted(unit):
                    yield unit

    def _wanted(self, unit: Unit) -> bool:
        if not self.exclude and self.where is None:
            return True
        at = unit.coordinates()
        if any(excluded(at, rule) for rule in self.exclude):
            return False
        return self.where is None or bool(self.where(at))


def excluded(coordinates: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether coordinates agree with every entry of a rule."""
    return all(_agrees(coordinates[key], value) for key, value in rule.items())


def _agrees(here: Any, wanted: Any) -> bool:
    if isinstance(here, list):
        return here == wanted or (isinstance(wanted, (list, tuple)) and here in list(wanted))
    if isinstance(wanted, (list, tuple)):
        return any(_agrees(here, one) for one in wanted)
    if isinstance(here, float) and isinstance(wanted, (int, float)):
        return math.isclose(here, wanted, rel_tol=1e-9)
    return here == wanted
