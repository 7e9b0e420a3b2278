"""What the unsteered model reads in the generated text, projected on a bank's directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from emosteer.bank import Bank
from emosteer.models.capture import layer_at_two_thirds

from ..plan.identity import digest
from .base import Measured, Metric, Seen


@dataclass(frozen=True)
class Readings(Metric):
    """See `readings`."""

    concepts: tuple[str, ...] | None = None
    layer: int | None = None
    bank: Bank | None = field(default=None, compare=False)

    kind: ClassVar[str] = "readings"
    needs_text: ClassVar[bool] = True

    def definition(self) -> dict[str, Any]:
        found: dict[str, Any] = {"layer": self.layer}
        if self.concepts is not None:
            found["concepts"] = list(self.concepts)
        if self.bank is not None and self.layer is not None:
            found["directions"] = self._bits(self.bank, self.layer)
        return found

    def on(self, bank: Bank, layer: int) -> Readings:
        """The same metric with what the sweep says where this one does not."""
        bank = self.bank or bank
        layer = layer if self.layer is None else self.layer
        if layer not in bank.layers:
            raise ValueError(f"readings: layer {layer} is not in the bank, which has {list(bank.layers)}")
        concepts = tuple(bank.names) if self.concepts is None else self.concepts
        for concept in concepts:
            bank.index(concept)
        return Readings(self.name, concepts, layer, bank)

    def _bits(self, bank: Bank, layer: int) -> str:
        rows = [bank.index(concept) for concept in self.concepts or bank.names]
        directions = bank.directions[layer][rows].cpu().numpy().tobytes().hex()
        return digest(directions, bank.scale.get(layer), size=8)

    def measure(self, seen: Seen) -> Measured:
        found = seen.projections.get(self.fingerprint)
        if found is None or self.concepts is None:
            raise ValueError("no token was generated, so there is nothing to read")
        values = dict(zip(self.concepts, found.tolist()))
        return Measured(values.get(seen.unit.arm.concept, math.nan), values)


def readings(
    concepts: Iterable[str] | None = None,
    *,
    layer: int | None = None,
    bank: Bank | None = None,
    name: str = "readings",
) -> Readings:
    """Mean projection of the generated text's tokens on concepts, as the unsteered model reads it.

    `values[c] = mean_t <x_t, v_c> / scale`; the headline value is that of the unit's own concept, NaN
    where it has none among them.

    Args:
        concepts: None for all of the bank, random controls aside.
        layer: the stream after this block; None: the bank's layer nearest to two thirds of the depth.
        bank: None for the sweep's.
        name: the result's `metric`.
    """
    return Readings(name, None if concepts is None else tuple(concepts), layer, bank)


def ready_metrics(metrics: Sequence[Any], bank: Bank, depth: int) -> tuple[Any, ...]:
    """Metrics that know all they need: readings take the sweep's bank and its layer at two thirds."""
    layer = layer_at_two_thirds(bank.layers, depth)
    return tuple(m.on(bank, layer) if isinstance(m, Readings) else m for m in metrics)
