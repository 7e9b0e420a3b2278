"""A model steered at one set of layers and positions, with programs that come and go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from emosteer import spelling
from emosteer.bank import Bank
from emosteer.steering import MIN_SLOTS, Steering, steer

from ...plan.units import Unit
from .held_rows import TABLE_ROWS, HeldRows


class Steered:
    """Gives units their table rows, and says which tokens of a prompt nothing acts on.

    Attributes:
        layers, positions: where it steers.
        shared: the last block that no program changes the input of, −1 where steering is off.
    """

    def __init__(
        self, model: Any, bank: Bank, layers: tuple[int, ...], positions: str, relative: bool, slots: int
    ) -> None:
        self.layers, self.positions = layers, positions
        self.slots = max(slots, MIN_SLOTS)
        self._spec = spelling.positions(positions) if layers else "all"
        self.steering: Steering = steer(
            model,
            bank,
            [None] * TABLE_ROWS,
            layers=layers or bank.layers[:1],
            positions=self._spec,
            relative=relative,
            slots=self.slots,
        )
        self.shared = min(layers) if layers else 0
        self._rows = HeldRows(self.steering.set)

    def first_token(self, unit: Unit) -> int:
        """The first token of the prompt that a unit's program may act on; the prompt's length for none."""
        length = len(unit.prompt.tokens)
        if not unit.layers or self._spec == "generated":
            return length
        if isinstance(self._spec, slice):
            start = self._spec.start or 0
            return min(start if start >= 0 else max(length + start, 0), length)
        if isinstance(self._spec, torch.Tensor):
            on = self._spec.nonzero().flatten()
            return min(int(on[0]), length) if len(on) else length
        return 0

    @contextmanager
    def holding(self, units: Sequence[Unit]) -> Iterator[list[int]]:
        """The table rows of units, theirs until the end of the block."""
        rows = [self.hold(unit) for unit in units]
        try:
            yield rows
        finally:
            for unit in units:
                self.release(unit)

    def hold(self, unit: Unit) -> int:
        """The table row of a unit's program, written if need be; `release` as often."""
        return self._rows.hold(unit.program)

    def release(self, unit: Unit) -> None:
        """The unit is done with its row."""
        self._rows.release(unit.program)

    def batch(self, rows: Sequence[int], prompt_lengths: Sequence[int]) -> AbstractContextManager[None]:
        """Passes inside are of rows with these programs, whose prompts are so long; give them a 2-D mask."""
        lengths = torch.tensor(list(prompt_lengths))
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return self.steering.batch(list(rows), mask)
